package routing_test

import (
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// FuzzPath takes any event type and transaction ID, percent-decoded, and any device: either the message is sent under just those, which
// either database can store, or it is refused as the client can make use of it.
func FuzzPath(f *testing.F) {
	f.Add("m.room.encrypted", "1", "PHONE")
	f.Add("/", "%00", "AS_Device")
	f.Add("m.room_key_request", "\u2028\U0010ffff", "*")
	f.Add(strings.Repeat("ä", 128), "\xc3\x28", "\x00")
	f.Add("\xed\xa0\x80", "", strings.Repeat("x", 2000))
	f.Fuzz(func(t *testing.T, eventType, transactionID, deviceID string) {
		route, sender := newRoute(usualLimits)
		device := types.Device{UserID: alice.UserID, DeviceID: deviceID}
		res := route.Handle(put(strings.NewReader(`{"messages":{"@bob:here":{"D":{}},"@eve:there":{"D":{}}}}`)), device, eventType, transactionID)
		storable := func(text string) bool {
			return len(text) <= 255 && utf8.ValidString(text) && !strings.Contains(text, "\x00")
		}
		if !storable(eventType) || !storable(transactionID) || !storage.Storable(device) {
			wantRefusal(t, res, sender, http.StatusBadRequest, "M_INVALID_PARAM")
			return
		}
		wantOK(t, res)
		key := types.TransactionKey{Device: device, EventType: eventType, TransactionID: transactionID}
		if m := sender.messages[0]; m.Type != eventType || m.Transaction != key || len(m.Targets) != 1 || len(m.EDUs) != 1 {
			t.Errorf("sent was %+v", m)
		}
	})
}
