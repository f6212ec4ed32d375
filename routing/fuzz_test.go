package routing_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// FuzzRequestBody takes any body: it is either refused with nothing sent, or every content that
// is sent on is a JSON object that stands in the body byte for byte.
func FuzzRequestBody(f *testing.F) {
	limits := routing.Limits{MessageBytes: 40, RequestBytes: 2000}
	f.Fuzz(func(t *testing.T, body []byte) {
		route, sender := newRoute(limits)
		res := route.Handle(put(bytes.NewReader(body)), alice, "m.type", "txn")
		switch res.Code {
		case http.StatusOK:
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusNotImplemented:
			if len(sender.messages) != 0 {
				t.Fatalf("refused with %d, but sent %+v", res.Code, sender.messages)
			}
			return
		default:
			t.Fatalf("the answer is %d %#v", res.Code, res.JSON)
		}
		if len(sender.messages) != 1 {
			t.Fatalf("%d messages were sent", len(sender.messages))
		}
		targets := sender.messages[0].Targets
		if len(targets) > len(body)/len(`"":{}`) {
			t.Errorf("%d targets from %d bytes", len(targets), len(body))
		}
		seen := make(map[types.Device]bool)
		for _, target := range targets {
			if seen[target.Device] {
				t.Errorf("%+v is there twice", target.Device)
			}
			seen[target.Device] = true
			if !strings.HasPrefix(target.UserID, "@") || strings.ContainsRune(target.UserID, 0) || len(target.UserID) > 255 ||
				!strings.HasSuffix(target.UserID, ":here") && !strings.HasSuffix(target.UserID, ":here:8448") {
				t.Errorf("%q is no local user ID", target.UserID)
			}
			if !utf8.ValidString(target.UserID) || !utf8.ValidString(target.DeviceID) || !utf8.Valid(target.Content) {
				t.Errorf("%+v is not valid UTF-8", target)
			}
			if !json.Valid(target.Content) || target.Content[0] != '{' || !bytes.Contains(body, target.Content) {
				t.Errorf("the content %s is no object of the body", target.Content)
			}
			// What a limit of canonical JSON lets pass is longer by escapes and space alone.
			var compact bytes.Buffer
			if err := json.Compact(&compact, target.Content); err != nil || compact.Len() > limits.MessageBytes && !bytes.ContainsAny(compact.Bytes(), `\-`) {
				t.Errorf("the content %s has %d bytes, %v", target.Content, compact.Len(), err)
			}
		}
	})
}
