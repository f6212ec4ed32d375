package host

import (
	"net/http"
	"net/http/httptest"
	"testing"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// A /sync without a further stream costs no more than it did before there could be any, and does nothing for them. What was allocated before is
// counted on the handler as it was then; what is allocated now is less, since the query is parsed once.
func TestWithoutFurtherStreamsNothingIsAllocatedForThem(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	pool := poolThatAnswers{synctypes.StreamingToken{PDUPosition: 3, SendToDevicePosition: 900}}
	device := &userapi.Device{UserID: "@bob:x", ID: "PHONE"}
	for query, allocations := range map[string]struct{ before, now float64 }{
		"since=s3_0_0_900_0_0_0_0_0":                                            {17, 14},
		"since=s3_0_0_900_0_0_0_0_0&timeout=30000&filter=4":                     {21, 16},
		"since=s3_0_0_99999_0_0_0_0_0&timeout=30000&filter=%7B%22a.b%22%3A1%7D": {34, 28}, // which is ahead of the store
		"since=nonsense": {13, 10},
	} {
		req := httptest.NewRequest(http.MethodGet, "/sync?"+query, nil)
		if got := testing.AllocsPerRun(1000, func() { d.serveSync(req, device, pool) }); got > allocations.now || got > allocations.before {
			t.Errorf("%s: %v allocations, want at most %v", query, got, allocations.now)
		}
	}
}
