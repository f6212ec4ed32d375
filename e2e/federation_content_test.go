package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// strangeContents are contents that are written in more than one way, or in none that every program
// agrees on.
var strangeContents = []string{
	`{}`,
	`{"a":1.5,"b":0.1,"c":-1.25,"d":1.0,"e":1e300}`,
	`{"a":1e3,"b":1E3,"c":1e+3,"d":12e-1,"e":-0,"f":-0.0}`,
	`{"a":9007199254740993,"b":-9223372036854775809,"c":123456789012345678901234567890}`,
	`{"a":1,"a":2,"b":{"c":1,"c":{"d":2}}}`,
	`{"a":"x\u0000y","b":"\u0000"}`,
	`{"a":"\ud83d\ude00","b":"\u0041\u00e9"}`,
	`{"a":"\ud800","b":"\udfff x","c":"\ud800\ud800"}`,
	`{"a":"<script>&amp;</script>","b<>&":"\u003c"}`,
	"{\"a\":\"\u2028\u2029\",\"b\":\"\\u2028\\u2029\",\"\u2028\":1}",
	`{"a":"\"\\\/\b\f\n\r\t\u007f\u001f"}`,
	`{"z":1,"a":2,"é":3,"😀":4,"ﬀ":5,"":6,"A":7}`,
	` { "a" : [ 1 , { "b" : null } , true ] } `,
}

// escapedKeys are contents with a key that not every program signs alike.
var escapedKeys = []string{`{"a":"x","\u0000":1}`, `{"a":[{"b\"c":1,"C":2,"\\":3}]}`, `{"x\":1,\"y":2}`}

// doubtfulContents may be refused when they are for another server, since not every program could read
// them or check their signature.
var doubtfulContents = slices.Concat(escapedKeys, []string{
	`{"a":1e400}`, `{"a":-1e400}`, `{"a":-0.5}`, `{"a":1e-7}`, `{"a":[1,{"b":-1.25e-7}]}`, `{"a":1e-400}`,
})

// Whatever the content, the remote finds the signature good, and the content says what it said.
func TestStrangeContentsToRemote(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here) // fails the test for a signature that is not good
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		for _, content := range strangeContents {
			sendContent(t, alice, device, content)
		}
		got := remote.Receive(t, len(strangeContents), deadline)
		for i, content := range strangeContents {
			wantSameMeaning(t, got[i].Content, content)
		}
		wantNothingKept(t, here, remote.Name)
	})
}

// A content that is refused is refused as a whole request is, before anyone is sent anything; one that is
// not arrives.
func TestDoubtfulContentsToRemote(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		alice, local, device := Register(t, here, "alice"), Register(t, here, "local"), remote.Device("bob", "FIRST")
		for _, content := range doubtfulContents {
			before, since := len(remote.Messages()), local.Sync(t, Sync{}).NextBatch
			body := fmt.Sprintf(`{"messages":{%q:{"*":{"n":0}},%q:{%q:%s}}}`, local.UserID, device.UserID, device.DeviceID, content)
			a := alice.Put(t.Context(), "m.test", unique("txn"), []byte(body))
			if a.Status == http.StatusOK {
				local.Receive(t, since, 1)
				wantSameMeaning(t, remote.Receive(t, before+1, deadline)[before].Content, content)
				continue
			}
			wantRejected(t, a, rejection{status: http.StatusBadRequest, errcode: "M_BAD_JSON", names: []string{device.UserID.String()}})
			local.WantNothing(t, since)
		}
		// Within the server they mean what they meant to the sender.
		since := local.Sync(t, Sync{}).NextBatch
		for _, content := range doubtfulContents {
			sendContent(t, alice, local, content)
		}
		events, _ := local.Receive(t, since, len(doubtfulContents))
		for i, e := range events {
			wantSameJSON(t, e.Content, []byte(doubtfulContents[i]))
		}
	})
}

// The same between two servers, to the end.
func TestStrangeContentsBetweenServers(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedPair(t, b)
		alice, bob := Register(t, here, "alice"), Register(t, there, "bob")
		contents := slices.Concat(strangeContents, []string{nested(100), `{"a":"` + strings.Repeat("é", 30000) + `"}`})
		for _, content := range contents {
			sendContent(t, alice, bob, content)
		}
		events, since := bob.Receive(t, "", len(contents))
		for i, content := range contents {
			wantSameMeaning(t, events[i].Content, content)
		}
		bob.Settle(t, since)
	})
}

// What another server sends arrives as well.
func TestStrangeContentsFromRemote(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		contents := slices.Concat(strangeContents, escapedKeys)
		for _, content := range contents {
			remote.MustSend(t, here, unique("txn"), remote.ToDevice(unique("id"), To(json.RawMessage(content), bob)))
		}
		events, since := bob.Receive(t, "", len(contents))
		for i, content := range contents {
			wantSameMeaning(t, events[i].Content, content)
		}
		bob.Settle(t, since)
	})
}

func sendContent(t *testing.T, from, to *Client, content string) {
	t.Helper()
	body := fmt.Sprintf(`{"messages":{%q:{%q:%s}}}`, to.UserID, to.DeviceID, content)
	if a := from.Put(t.Context(), "m.test", unique("txn"), []byte(body)); a.Status != http.StatusOK {
		t.Fatalf("%s: want 200, got %v", content, a)
	}
}

// wantSameMeaning compares two contents as a program understands them: integers by their value, other
// numbers as doubles, and of a key that is there twice the last. Canonical JSON may write them in another way.
func wantSameMeaning(t *testing.T, got []byte, want string) {
	t.Helper()
	if a, b := meaning(t, got), meaning(t, []byte(want)); !reflect.DeepEqual(a, b) {
		t.Errorf("want the content %.300s\ngot %.300s", want, got)
	}
}

func meaning(t *testing.T, document []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %.500s", err, document)
	}
	return byValue(t, v)
}

func byValue(t *testing.T, v any) any {
	t.Helper()
	switch v := v.(type) {
	case json.Number:
		if value, ok := new(big.Int).SetString(v.String(), 10); ok {
			return value.String()
		}
		value, err := v.Float64()
		if err != nil {
			return v // beyond a double
		}
		if value == math.Trunc(value) {
			integer, _ := new(big.Float).SetFloat64(value).Int(nil)
			return integer.String()
		}
		return value
	case map[string]any:
		for key := range v {
			v[key] = byValue(t, v[key])
		}
	case []any:
		for i := range v {
			v[i] = byValue(t, v[i])
		}
	}
	return v
}
