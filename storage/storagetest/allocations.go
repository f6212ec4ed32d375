package storagetest

import (
	"fmt"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Allocations are how many a call on a hot path may take, of the driver's and of what goes on beside it too: leave
// room of a third.
type Allocations struct {
	Commit1, Commit20, Commit1000 float64 // with so many copies of a message, and its transaction
	MessagesNone, Messages100     float64 // with so many waiting
}

// RunAllocations checks that the calls take no more allocations.
func RunAllocations(t *testing.T, open Opener, limits Allocations) {
	f := newFixture(t, open)
	for copies, limit := range map[int]float64{1: limits.Commit1, 20: limits.Commit20, 1000: limits.Commit1000} {
		var devices []types.Device
		for i := range copies {
			devices = append(devices, types.Device{UserID: alice.UserID, DeviceID: fmt.Sprint("COPY", i)})
		}
		deliveries, n := []storage.Delivery{delivery(`{"n":1}`, devices...)}, 0
		f.wantAllocations(fmt.Sprintf("a commit of %d copies", copies), limit, func() {
			n++
			key := types.TransactionKey{Device: alice, EventType: eventType, TransactionID: fmt.Sprint(copies, ".", n)}
			f.commit(f.batch(deliveries, transaction(key, 1)))
		})
	}
	f.send(bob, 100)
	for waiting, limit := range map[int]float64{0: limits.MessagesNone, 100: limits.Messages100} {
		device := map[int]types.Device{0: alice, 100: bob}[waiting]
		f.wantAllocations(fmt.Sprintf("reading %d messages", waiting), limit, func() {
			if got := f.messages(device); len(got) != waiting {
				f.Fatalf("%d messages are there, want %d", len(got), waiting)
			}
		})
	}
}

func (f *fixture) wantAllocations(what string, limit float64, call func()) {
	f.Helper()
	if n := testing.AllocsPerRun(20, call); n > limit {
		f.Errorf("%s takes %.0f allocations, want at most %.0f", what, n, limit)
	}
}
