package routing_test

import (
	"bytes"
	"net/http"
	"testing"
)

// TestAllocationsOfARequest bounds what a request allocates until its message is handed on: the content and its place among its
// user's devices for each device, and the rest once.
func TestAllocationsOfARequest(t *testing.T) {
	const once, eachDevice = 80, 4.5
	for _, devices := range []int{1, 20, 1000} {
		body := bodyTo(devices)
		allocations := testing.AllocsPerRun(20, func() {
			route, _ := newRoute(usualLimits)
			if res := route.Handle(put(bytes.NewReader(body)), alice, "m.type", "txn"); res.Code != http.StatusOK {
				t.Fatalf("%+v", res)
			}
		})
		if most := once + eachDevice*float64(devices); allocations > most {
			t.Errorf("to %d devices: %.0f allocations, want at most %.0f", devices, allocations, most)
		}
	}
}
