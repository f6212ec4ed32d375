package outbox_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"

	"crypto/ed25519"
	"github.com/matrix-org/gomatrixserverlib"
	"pgregory.net/rapid"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// TestPackCarriesWhatWasSent packs random messages and looks for each content in what came out.
func TestPackCarriesWhatWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := drawTargets(t)
		m := outbox.Message{Origin: here, Sender: "@alice:" + here, Type: rapid.String().Draw(t, "type")}
		for device, content := range sent {
			m.Targets = append(m.Targets, devices.Target{Device: device, Content: []byte(content)})
		}
		packed, err := outbox.Pack(m)
		if err != nil {
			t.Fatal(err)
		}
		ids := make(map[string]bool)
		var before storage.EDU
		var beforeLast devices.Target
		for i, e := range packed {
			targets := unpack(t, m, e)
			if ids[e.MessageID] || len(e.MessageID) != 32 || e.Origin != here || e.Position != 0 {
				t.Fatalf("EDU %+v", e)
			}
			ids[e.MessageID] = true
			lastBefore := beforeLast
			for j, got := range targets {
				want, ok := sent[got.Device]
				if !ok || outbox.ServerOf(got.UserID) != e.Destination {
					t.Fatalf("%v is in an EDU to %s", got.Device, e.Destination)
				}
				if !sameJSON(t, []byte(want), got.Content) {
					t.Fatalf("%s arrives as %s", want, got.Content)
				}
				delete(sent, got.Device)
				if i+j > 0 && compareTargets(beforeLast, got) >= 0 {
					t.Fatalf("%v comes after %v", got.Device, beforeLast.Device)
				}
				beforeLast = got
			}
			if size := sizeOf(t, e); size > outbox.MaxEDUBytes && len(targets) > 1 {
				t.Fatalf("an EDU with %d contents has %d bytes", len(targets), size)
			}
			if i > 0 && before.Destination == e.Destination && fits(t, m, before, targets[0]) && !wildcardBeside(lastBefore, targets[0]) {
				t.Fatalf("the first content of an EDU had room in the one before")
			}
			before = e
			for _, got := range targets[1:] {
				if wildcardBeside(targets[0], got) {
					t.Fatalf("%v is beside %v", got.Device, targets[0].Device)
				}
			}
			wantSignable(t, e.Content)
		}
		if len(sent) > 0 {
			t.Fatalf("%d contents were not sent", len(sent))
		}
	})
}

// wildcardBeside reports whether two of one user's targets are one for all devices and one for a certain
// device.
func wildcardBeside(a, b devices.Target) bool {
	return a.UserID == b.UserID && (a.DeviceID == devices.AllDevices || b.DeviceID == devices.AllDevices)
}

func drawTargets(t *rapid.T) map[types.Device]string {
	users := rapid.Custom(func(t *rapid.T) string {
		return "@" + rapid.OneOf(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.String().Filter(noColon).Filter(outbox.IsPlain)).Draw(t, "local") +
			":" + rapid.SampledFrom([]string{"x.org", "x.org:8448", "y.org"}).Draw(t, "server")
	})
	ids := rapid.OneOf(rapid.SampledFrom([]string{"*", "A", "B", "AA"}), rapid.String().Filter(outbox.IsPlain))
	contents := rapid.Custom(drawContent)
	targets := make(map[types.Device]string)
	for range rapid.IntRange(1, 12).Draw(t, "targets") {
		targets[types.Device{UserID: users.Draw(t, "user"), DeviceID: ids.Draw(t, "device")}] = contents.Draw(t, "content")
	}
	return targets
}

func noColon(s string) bool { return !strings.Contains(s, ":") }

// drawContent draws an object: some are of about the sizes where an EDU is full.
func drawContent(t *rapid.T) string {
	pad := ""
	if rapid.IntRange(0, 3).Draw(t, "large") == 0 {
		size := rapid.OneOf(rapid.IntRange(0, 70<<10), rapid.IntRange(65100, 65400), rapid.IntRange(32500, 32700)).Draw(t, "size")
		pad = strings.Repeat(rapid.SampledFrom([]string{"x", "<", "é", "\\u2028"}).Draw(t, "letter"), size)
		if len(pad) > 70<<10 {
			pad = pad[:(70<<10)/12*12]
		}
	}
	return fmt.Sprintf(` { "pad" : "%s", "v":%s}`, pad, drawJSON(t, 4))
}

func drawJSON(t *rapid.T, depth int) string {
	kinds := []string{"literal", "number", "string"}
	if depth > 0 {
		kinds = append(kinds, "array", "object", "deep")
	}
	switch rapid.SampledFrom(kinds).Draw(t, "kind") {
	case "number":
		return drawNumber(t)
	case "string":
		return drawString(t)
	case "array":
		var items []string
		for range rapid.IntRange(0, 3).Draw(t, "items") {
			items = append(items, drawJSON(t, depth-1))
		}
		return "[" + strings.Join(items, " ,") + "]"
	case "object":
		var items []string
		for range rapid.IntRange(0, 3).Draw(t, "fields") {
			items = append(items, drawKey(t)+": "+drawJSON(t, depth-1))
		}
		return "{" + strings.Join(items, ", ") + "}"
	case "deep":
		n := rapid.IntRange(1, 100).Draw(t, "depth")
		return strings.Repeat("[", n) + drawJSON(t, 0) + strings.Repeat("]", n)
	default:
		return rapid.SampledFrom([]string{"null", "true", "false", "{}", "[]"}).Draw(t, "literal")
	}
}

// drawNumber draws those that can be sent: TestCanonical has the others.
func drawNumber(t *rapid.T) string {
	return rapid.OneOf(
		rapid.SampledFrom([]string{"0", "-0", "1e3", "1.5", "-1.5", "0.25", "1E+2", "-0.0", "1e-10", "1e100", "12345678901234567890123", "9007199254740993.0"}),
		rapid.Map(rapid.Int64(), func(n int64) string { return fmt.Sprint(n) }),
		rapid.Map(rapid.Float64Range(1, 1e300), func(n float64) string { return fmt.Sprint(n) }),
	).Draw(t, "number")
}

// drawKey draws one that can be sent: TestCanonical has the others.
func drawKey(t *rapid.T) string {
	return rapid.Custom(drawString).Filter(func(text string) bool {
		var key string
		return json.Unmarshal([]byte(text), &key) == nil && outbox.IsPlain(key)
	}).Draw(t, "key")
}

func drawString(t *rapid.T) string {
	if rapid.Bool().Draw(t, "odd") {
		odd := []string{`\u0000`, `\ud800`, `\udfff\ud800`, `\ud83d\ude00`, `<>&`, `\u003c`, `\u2028`, "\u2029", `\/`, `\"`, `\\`, `\u001f`, "-0", "é", "e\u0301"}
		return `"` + strings.Join(rapid.SliceOfN(rapid.SampledFrom(odd), 0, 4).Draw(t, "string"), "") + `"`
	}
	data, err := json.Marshal(rapid.String().Draw(t, "string"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// unpack returns what an EDU holds, in the order in which it stands there.
func unpack(t failer, m outbox.Message, e storage.EDU) (targets []devices.Target) {
	t.Helper()
	wantFixpoint(t, e.Content)
	var content struct {
		MessageID string          `json:"message_id"`
		Messages  json.RawMessage `json:"messages"`
		Sender    string          `json:"sender"`
		Type      string          `json:"type"`
	}
	if err := json.Unmarshal(e.Content, &content); err != nil {
		t.Fatal(err)
	}
	if content.MessageID != e.MessageID || content.Sender != m.Sender || content.Type != m.Type {
		t.Fatalf("an EDU of %q is %.200q", m.Type, e.Content)
	}
	for _, user := range fieldsOf(t, content.Messages) {
		for _, device := range fieldsOf(t, user.value) {
			targets = append(targets, target(user.name, device.name, string(device.value)))
		}
	}
	if len(targets) == 0 {
		t.Fatalf("an EDU holds no message")
	}
	return targets
}

type field struct {
	name  string
	value json.RawMessage
}

func fieldsOf(t failer, object []byte) (fields []field) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(string(object)))
	if _, err := decoder.Token(); err != nil {
		t.Fatal(err)
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		f := field{name: name.(string)}
		if err = decoder.Decode(&f.value); err != nil {
			t.Fatal(err)
		}
		fields = append(fields, f)
	}
	return fields
}

// fits reports whether an EDU would have had room for one content more.
func fits(t failer, m outbox.Message, e storage.EDU, more devices.Target) bool {
	t.Helper()
	m.Targets = append(unpack(t, m, e), more)
	messages := make(map[string]map[string]json.RawMessage)
	for _, target := range m.Targets {
		if messages[target.UserID] == nil {
			messages[target.UserID] = make(map[string]json.RawMessage)
		}
		messages[target.UserID][target.DeviceID] = target.Content
	}
	content, err := json.Marshal(map[string]any{"message_id": e.MessageID, "messages": messages, "sender": m.Sender, "type": m.Type})
	if err != nil {
		t.Fatal(err)
	}
	e.Content = content
	return sizeOf(t, e) <= outbox.MaxEDUBytes
}

func compareTargets(a, b devices.Target) int {
	return strings.Compare(
		outbox.ServerOf(a.UserID)+"\x00"+a.UserID+"\x00"+a.DeviceID,
		outbox.ServerOf(b.UserID)+"\x00"+b.UserID+"\x00"+b.DeviceID,
	)
}

func sameJSON(t failer, a, b []byte) bool {
	t.Helper()
	return reflect.DeepEqual(decoded(t, a), decoded(t, b))
}

// decoded has numbers as text that is equal for equal values.
func decoded(t failer, data []byte) any {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	return withValues(value)
}

func withValues(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key := range v {
			v[key] = withValues(v[key])
		}
	case []any:
		for i := range v {
			v[i] = withValues(v[i])
		}
	case json.Number:
		if !strings.ContainsAny(string(v), ".eE") {
			exact, _ := new(big.Int).SetString(string(v), 10)
			if f, _ := new(big.Float).SetInt(exact).Float64(); f < 1<<53 && f > -1<<53 {
				return f
			}
			return exact.String()
		}
		f, _ := v.Float64()
		return f
	}
	return value
}

var signingKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// wantSignable signs an object as the host signs a request, sends it, and verifies it.
func wantSignable(t failer, content []byte) {
	t.Helper()
	request, err := json.Marshal(map[string]any{"content": map[string]any{"edus": []json.RawMessage{content}}})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := gomatrixserverlib.SignJSON(here, "ed25519:1", signingKey, request)
	if err != nil {
		t.Fatal(err)
	}
	if err = gomatrixserverlib.VerifyJSON(here, "ed25519:1", signingKey.Public().(ed25519.PublicKey), signed); err != nil {
		t.Fatalf("the signature over %s is not valid: %v", content, err)
	}
}
