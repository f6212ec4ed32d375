package todevicemodule_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// A fault of the whole database is none of one message: whoever sent it sends it again.
func TestBrokenDatabaseDropsNothing(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		store := open(t)
		module := started(t, store)
		receive := func() error {
			return module.ReceiveEDUs(t.Context(), "there", []json.RawMessage{json.RawMessage(
				`{"sender":"@carol:there","type":"m.test","message_id":"e1","messages":{"@bob:test":{"PHONE":{"n":1}}}}`)})
		}
		send := func() int {
			req := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(`{"messages":{"@bob:test":{"PHONE":{"n":2}}}}`)).WithContext(t.Context())
			return module.SendToDevice(req, types.Device{UserID: "@alice:test", DeviceID: "PHONE"}, "m.test", "1").Code
		}
		store.Exec(t, `ALTER TABLE todevice_messages RENAME TO elsewhere`)
		if err := receive(); err == nil {
			t.Error("the other server is told that its message is stored")
		}
		if code := send(); code != http.StatusServiceUnavailable {
			t.Errorf("the client is answered with %d", code)
		}
		store.Exec(t, `ALTER TABLE elsewhere RENAME TO todevice_messages`)
		if err := receive(); err != nil {
			t.Error(err)
		}
		if code := send(); code != http.StatusOK {
			t.Errorf("the client is answered with %d", code)
		}
		bob := types.Device{UserID: "@bob:test", DeviceID: "PHONE"}
		messages, _, err := module.ReadForSync(t.Context(), bob, 0, module.LatestPosition(), nobodyIgnored)
		if err != nil || len(messages) != 2 {
			t.Errorf("%d messages arrive, %v", len(messages), err)
		}
	})
}
