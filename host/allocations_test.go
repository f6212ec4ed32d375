package host

import (
	"net/http"
	"net/http/httptest"
	"testing"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// A /sync without a further stream costs what it cost before there could be any: the numbers were counted on the handler as it was then.
func TestWithoutFurtherStreamsNothingIsAllocatedForThem(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	pool := poolThatAnswers{synctypes.StreamingToken{PDUPosition: 3, SendToDevicePosition: 900}}
	device := &userapi.Device{UserID: "@bob:x", ID: "PHONE"}
	for query, before := range map[string]float64{
		"since=s3_0_0_900_0_0_0_0_0":                                            17,
		"since=s3_0_0_900_0_0_0_0_0&timeout=30000&filter=4":                     21,
		"since=s3_0_0_99999_0_0_0_0_0&timeout=30000&filter=%7B%22a.b%22%3A1%7D": 34, // which is ahead of the store
		"since=nonsense": 13,
	} {
		req := httptest.NewRequest(http.MethodGet, "/sync?"+query, nil)
		if got := testing.AllocsPerRun(1000, func() { d.serveSync(req, device, pool) }); got > before {
			t.Errorf("%s: %v allocations, want at most %v", query, got, before)
		}
	}
}
