package outbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func target(userID, deviceID, content string) devices.Target {
	return devices.Target{Device: types.Device{UserID: userID, DeviceID: deviceID}, Content: []byte(content)}
}

func pack(t failer, targets ...devices.Target) []storage.EDU {
	t.Helper()
	packed, err := outbox.Pack(outbox.Message{Origin: here, Sender: "@alice:" + here, Type: "org.example", Targets: targets})
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// sizeOf is how much of a transaction an EDU takes.
func sizeOf(t failer, e storage.EDU) int {
	t.Helper()
	data, err := json.Marshal(gomatrixserverlib.EDU{Type: spec.MDirectToDevice, Origin: e.Origin, Content: e.Content})
	if err == nil {
		data, err = gomatrixserverlib.CanonicalJSON(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(data)
}

func TestPackOneEDUForEachDestination(t *testing.T) {
	packed := pack(t,
		target("@zoe:b.org", "PHONE", `{ "n": 1.0 }`),
		target("@bob:a.org", "*", `{"n":2}`),
		target("@amy:b.org", "TWO", `{"n":3}`),
		target("@amy:b.org", "ONE", `{"n":4}`),
		target("@bob:a.org:8448", "*", `{"n":5}`),
	)
	want := map[string]string{
		"a.org":      `{"@bob:a.org":{"*":{"n":2}}}`,
		"a.org:8448": `{"@bob:a.org:8448":{"*":{"n":5}}}`,
		"b.org":      `{"@amy:b.org":{"ONE":{"n":4},"TWO":{"n":3}},"@zoe:b.org":{"PHONE":{"n":1}}}`,
	}
	if len(packed) != len(want) {
		t.Fatalf("%d EDUs, want %d", len(packed), len(want))
	}
	for _, e := range packed {
		content := fmt.Sprintf(`{"message_id":%q,"messages":%s,"sender":"@alice:%s","type":"org.example"}`, e.MessageID, want[e.Destination], here)
		if string(e.Content) != content {
			t.Errorf("to %s goes %s, want %s", e.Destination, e.Content, content)
		}
		if e.Origin != here {
			t.Errorf("the origin is %s", e.Origin)
		}
	}
}

func TestPackNothing(t *testing.T) {
	if packed := pack(t); len(packed) != 0 {
		t.Errorf("%d EDUs of no message", len(packed))
	}
}

func TestPackKeepsStrangeNames(t *testing.T) {
	name := "@<&>\u2028😀\u007f:there"
	packed, err := outbox.Pack(outbox.Message{
		Origin: here, Sender: "@" + name, Type: "\"<type>\u2029\n", Targets: []devices.Target{target(name, "<*>\u2029", `{}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Sender, Type string
		Messages     map[string]map[string]json.RawMessage
	}
	if err = json.Unmarshal(packed[0].Content, &got); err != nil {
		t.Fatal(err)
	}
	if got.Sender != "@"+name || got.Type != "\"<type>\u2029\n" || got.Messages[name]["<*>\u2029"] == nil {
		t.Errorf("packed %s", packed[0].Content)
	}
	wantFixpoint(t, packed[0].Content)
}

// filling returns a content that makes the EDU of one target exactly as large as wanted.
func filling(t failer, userID, deviceID string, size int) string {
	t.Helper()
	empty := sizeOf(t, pack(t, target(userID, deviceID, `{"x":""}`))[0])
	return `{"x":"` + strings.Repeat("x", size-empty) + `"}`
}

// To the byte: what fits goes along, and with one byte more it does not.
func TestPackFillsEDUs(t *testing.T) {
	first := target("@amy:there", "ONE", `{}`)
	for _, second := range []types.Device{{UserID: "@amy:there", DeviceID: "TWO"}, {UserID: "@bob:there", DeviceID: "<\u2028>"}} {
		alone := sizeOf(t, pack(t, first)[0])
		both := sizeOf(t, pack(t, first, target(second.UserID, second.DeviceID, `{"x":""}`))[0])
		for spare, want := range map[int]int{0: 1, 1: 1, -1: 2} {
			content := `{"x":"` + strings.Repeat("x", outbox.MaxEDUBytes-both-spare) + `"}`
			packed := pack(t, first, target(second.UserID, second.DeviceID, content))
			if len(packed) != want {
				t.Errorf("%d EDUs where %d bytes are spare, want %d", len(packed), spare, want)
			}
			if spare >= 0 && sizeOf(t, packed[0]) != outbox.MaxEDUBytes-spare {
				t.Errorf("the EDU has %d bytes", sizeOf(t, packed[0]))
			}
			if spare < 0 && sizeOf(t, packed[0]) != alone {
				t.Errorf("the first of two EDUs has %d bytes, want %d", sizeOf(t, packed[0]), alone)
			}
		}
	}
}

func TestPackSendsALargeContentAlone(t *testing.T) {
	huge := filling(t, "@bob:there", "B", outbox.MaxEDUBytes+1)
	packed := pack(t, target("@bob:there", "C", `{}`), target("@bob:there", "A", `{}`), target("@bob:there", "B", huge))
	if len(packed) != 3 {
		t.Fatalf("%d EDUs, want 3", len(packed))
	}
	for i, deviceID := range []string{"A", "B", "C"} {
		if !strings.Contains(string(packed[i].Content), fmt.Sprintf(`{"@bob:there":{%q:`, deviceID)) {
			t.Errorf("EDU %d is not for device %s", i, deviceID)
		}
	}
	if got := sizeOf(t, packed[1]); got != outbox.MaxEDUBytes+1 {
		t.Errorf("the large EDU has %d bytes", got)
	}
}

func TestPackNamesTheContentThatCannotBeSent(t *testing.T) {
	_, err := outbox.Pack(outbox.Message{Targets: []devices.Target{target("@a:there", "A", `{}`), target("@b:there", "B", `{"secret":-0.5}`)}})
	if !errors.Is(err, outbox.ErrNumber) || !strings.Contains(err.Error(), `["@b:there"]["B"]`) || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error is %v", err)
	}
}

func TestPackNamesTheKeyThatCannotBeSent(t *testing.T) {
	for _, strange := range []devices.Target{
		target("@b\"c:there", "B", `{}`), target("@b:there", `B\C`, `{}`), target("@b:there", "\n", `{}`), target("@b:there", "B", `{"a":[{"\u0000":1}]}`),
	} {
		_, err := outbox.Pack(outbox.Message{Targets: []devices.Target{target("@a:there", "A", `{}`), strange}})
		if want := fmt.Sprintf("messages[%q][%q]", strange.UserID, strange.DeviceID); !errors.Is(err, outbox.ErrKey) || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want ErrKey for %s", err, want)
		}
	}
}

func TestServerOf(t *testing.T) {
	for userID, want := range map[string]string{"@a:b": "b", "@a:b:8448": "b:8448", "@a:[::1]:8448": "[::1]:8448", "@a": ""} {
		if got := outbox.ServerOf(userID); got != want {
			t.Errorf("the server of %s is %q, want %q", userID, got, want)
		}
	}
}

// A device ID may sort before "*": one for all devices stands alone all the same.
func TestPackSendsForAllDevicesAlone(t *testing.T) {
	message := outbox.Message{Origin: here, Sender: "@alice:" + here, Type: "org.example"}
	for _, deviceID := range []string{"!", devices.AllDevices, "A"} {
		message.Targets = append(message.Targets, devices.Target{
			Device: types.Device{UserID: "@bob:" + there, DeviceID: deviceID}, Content: []byte(`{}`),
		})
	}
	var told []string
	message.Packed = func(target devices.Target, edu *storage.EDU) {
		told = append(told, target.DeviceID+" "+edu.Destination+" "+edu.MessageID)
	}
	packed, err := outbox.Pack(message)
	if err != nil || len(packed) != 3 {
		t.Fatalf("%d EDUs, %v", len(packed), err)
	}
	for i, deviceID := range []string{"!", devices.AllDevices, "A"} {
		if !strings.Contains(string(packed[i].Content), `{"`+deviceID+`":{}}`) {
			t.Errorf("EDU %d is %s", i, packed[i].Content)
		}
		if want := deviceID + " " + there + " " + packed[i].MessageID; i >= len(told) || told[i] != want {
			t.Errorf("told of %q, want %q at %d", told, want, i)
		}
	}
}
