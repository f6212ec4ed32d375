package storagetest

import (
	"fmt"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func acknowledgeTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"nothing to delete":    acknowledgeNothing,
		"through is inclusive": acknowledgeRange,
		"limit":                acknowledgeLimit,
		"several of a device":  acknowledgeMerged,
		"many devices":         acknowledgeMany,
	}
}

func through(device types.Device, position types.Position) storage.Acknowledgement {
	return storage.Acknowledgement{Device: device, Through: position}
}

// wantAcknowledged acknowledges, and checks what was deleted of each one that deleted any; what reaches the limit may be
// unfinished, and nothing else.
func (f *fixture) wantAcknowledged(limit int, want map[storage.Acknowledgement]int, acknowledgements ...storage.Acknowledgement) {
	f.Helper()
	got, err := f.store.Acknowledge(f.ctx, acknowledgements, limit)
	f.must(err)
	for _, a := range got {
		if a.Deleted != want[a.Acknowledgement] || a.Deleted == 0 || a.Unfinished != (a.Deleted == limit) {
			f.Errorf("with the limit %d, %+v came of an acknowledgement that covers %d", limit, a, want[a.Acknowledgement])
		}
	}
	if len(got) != len(want) {
		f.Fatalf("%d acknowledgements deleted some, want %d", len(got), len(want))
	}
}

type deleted = map[storage.Acknowledgement]int

func acknowledgeNothing(f *fixture) {
	queued := f.send(alice, 2)
	f.wantAcknowledged(10, nil)
	f.wantAcknowledged(10, nil, through(bob, everLater), through(alice, 0), through(alice, queued[0].Position-1),
		through(types.Device{UserID: alice.UserID}, everLater), through(types.Device{DeviceID: alice.DeviceID}, everLater))
	f.wantMessages(alice, queued)
}

func acknowledgeRange(f *fixture) {
	tablet := types.Device{UserID: alice.UserID, DeviceID: "TABLET"}
	queued, others, tablets := f.send(alice, 5), f.send(bob, 5), f.send(tablet, 5)
	first, second := through(alice, queued[1].Position), through(bob, others[3].Position)
	f.wantAcknowledged(10, deleted{first: 2, second: 4}, first, second)
	f.wantMessages(alice, queued[2:])
	f.wantMessages(bob, others[4:])
	f.wantMessages(tablet, tablets)
	f.wantAcknowledged(10, nil, first)
	f.wantMessages(alice, queued[2:])
	f.wantAcknowledged(10, deleted{through(alice, everLater): 3}, through(alice, everLater), second)
	f.wantMessages(alice, nil)
	f.wantMessages(bob, others[4:])
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

func acknowledgeLimit(f *fixture) {
	queued, others := f.send(alice, 10), f.send(bob, 3)
	acknowledgement := through(alice, queued[7].Position)
	f.wantAcknowledged(4, deleted{acknowledgement: 4, through(bob, everLater): len(others)}, acknowledgement, through(bob, everLater))
	f.wantMessages(alice, queued[4:])
	f.wantMessages(bob, nil)
	for _, nothing := range []int{0, -1} {
		_, err := f.store.Acknowledge(f.ctx, []storage.Acknowledgement{acknowledgement}, nothing)
		f.wantRefused(err)
	}
	f.wantMessages(alice, queued[4:])
	// The fourth was the last, which nobody knows before they look again.
	f.wantAcknowledged(4, deleted{acknowledgement: 4}, acknowledgement)
	f.wantAcknowledged(4, nil, acknowledgement)
	f.wantMessages(alice, queued[8:])
}

func acknowledgeMerged(f *fixture) {
	queued := f.send(alice, 6)
	furthest := through(alice, queued[3].Position)
	f.wantAcknowledged(10, deleted{furthest: 4}, through(alice, queued[1].Position), furthest, through(alice, queued[0].Position))
	f.wantMessages(alice, queued[4:])
}

func acknowledgeMany(f *fixture) {
	var devices []types.Device
	for i := range 300 {
		devices = append(devices, types.Device{UserID: fmt.Sprintf("@u%d:x", i%7), DeviceID: fmt.Sprint(i)})
	}
	var deliveries []storage.Delivery
	for i := range 5 {
		deliveries = append(deliveries, delivery(fmt.Sprintf(`{"n":%d}`, i), devices...))
	}
	f.commit(f.batch(deliveries))
	var acknowledgements []storage.Acknowledgement
	want := deleted{}
	for i, device := range devices {
		a := through(device, sentTo(deliveries, i)[i%5].Position)
		acknowledgements = append(acknowledgements, a)
		want[a] = i%5 + 1
	}
	given := slices.Clone(acknowledgements)
	f.wantAcknowledged(5, want, acknowledgements...) // a fifth of them reach the limit
	if !slices.Equal(given, acknowledgements) {
		f.Error("the caller's acknowledgements were changed")
	}
	for i, device := range devices {
		f.wantMessages(device, sentTo(deliveries, i)[i%5+1:])
	}
}
