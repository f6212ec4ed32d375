package consumers_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// FuzzInboundEDU takes any content of an EDU: it is either skipped for one reason, or what is sent on
// keeps every bound, and each content stands in the EDU byte for byte.
func FuzzInboundEDU(f *testing.F) {
	f.Add([]byte(edu("id", toBob)))
	f.Add([]byte(edu("id", `{"@bob:here":{"*":{},"D":{}},"@eve:elsewhere":{"D":{}},"@dan:here:8448":{}}`)))
	f.Add([]byte(keyRequest("id", "D")))
	f.Add([]byte(eduWith(`"sender":"@c:` + origin + `","type":"\u0000","message_id":null,"messages":{"":{"":{}}}`)))
	f.Add([]byte(`{"sender":"@c:` + origin + `","Sender":"@b:here","type":"t","message_id":"\ud800","messages":{"@b:here":{"\udfff":{"a":[{}]}}}}`))
	const maxEDUBytes = 2000
	f.Fuzz(func(t *testing.T, raw []byte) {
		sender := &sends{}
		fed := newFederation(sender)
		fed.MaxEDUBytes = maxEDUBytes
		if err := fed.Receive(t.Context(), origin, []json.RawMessage{raw}); err != nil {
			t.Fatal(err)
		}
		if len(fed.outcomes) != 1 {
			t.Fatalf("the outcomes are %v", fed.outcomes)
		}
		if fed.outcomes[0] != "applied" {
			if len(sender.calls) != 0 {
				t.Fatalf("%s, but sent was %+v", fed.outcomes[0], sender.calls)
			}
			return
		}
		if len(raw) > maxEDUBytes || len(sender.calls) != 1 || len(sender.calls[0]) != 1 {
			t.Fatalf("of %d bytes sent was %+v", len(raw), sender.calls)
		}
		m := sender.calls[0][0]
		if !strings.HasPrefix(m.Sender, "@") || !strings.HasSuffix(m.Sender, ":"+origin) || !text(m.Sender, 255) {
			t.Errorf("the sender is %q", m.Sender)
		}
		if m.Type == "" || !text(m.Type, 255) {
			t.Errorf("the type is %q", m.Type)
		}
		id := m.Transaction.TransactionID
		if id == "" || !text(id, 4*32) || utf8.RuneCountInString(id) > 32 || m.Transaction.UserID != origin || m.Transaction.EventType != "m.direct_to_device" {
			t.Errorf("the transaction is %+v", m.Transaction)
		}
		seen := make(map[types.Device]bool)
		for _, target := range m.Targets {
			if seen[target.Device] {
				t.Errorf("%+v is there twice", target.Device)
			}
			seen[target.Device] = true
			if !text(target.UserID, 255) || !utf8.ValidString(target.DeviceID) ||
				!strings.HasSuffix(target.UserID, ":here") && !strings.HasSuffix(target.UserID, ":here:8448") {
				t.Errorf("%+v is no device of this server", target.Device)
			}
			if !json.Valid(target.Content) || target.Content[0] != '{' || !bytes.Contains(raw, target.Content) ||
				!utf8.Valid(target.Content) || bytes.IndexByte(target.Content, 0) >= 0 || types.Depth(target.Content) > types.MaxContentDepth {
				t.Errorf("the content is %s", target.Content)
			}
		}
	})
}

// text reports whether every database takes it, in so many bytes.
func text(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}
