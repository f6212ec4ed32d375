package todevicemodule_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// slowBody is a body before which something happens.
type slowBody struct {
	io.Reader
	meanwhile func()
}

func (s *slowBody) Read(p []byte) (int, error) {
	if s.meanwhile != nil {
		s.meanwhile()
		s.meanwhile = nil
	}
	return s.Reader.Read(p)
}

// A request that is overtaken by a deletion of its device gets 503 and stores nothing. Where it is another device's that was
// deleted, the repetition is stored, once.
func TestRequestThatADeletionOvertakes(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		module := started(t, open(t))
		alice, bob := types.Device{UserID: "@alice:test", DeviceID: "PHONE"}, types.Device{UserID: "@bob:test", DeviceID: "PHONE"}
		deletion := func() {
			if err := module.DeleteDevices(t.Context(), alice.UserID, func() error { return nil }); err != nil {
				t.Error(err)
			}
		}
		for i, meanwhile := range []func(){deletion, deletion, nil, nil} {
			body := &slowBody{strings.NewReader(`{"messages":{"@bob:test":{"PHONE":{}}}}`), meanwhile}
			req := httptest.NewRequest(http.MethodPut, "/", body).WithContext(t.Context())
			want := http.StatusOK
			if meanwhile != nil {
				want = http.StatusServiceUnavailable
			}
			if res := module.SendToDevice(req, alice, "m.test", "1"); res.Code != want {
				t.Errorf("request %d is answered %d %v, want %d", i, res.Code, res.JSON, want)
			}
			messages, _, err := module.ReadForSync(t.Context(), bob, 0, module.LatestPosition(), nobodyIgnored)
			if stored := len(messages) == 1; err != nil || stored != (want == http.StatusOK) {
				t.Errorf("after request %d there are %d messages (%v)", i, len(messages), err)
			}
		}
	})
}
