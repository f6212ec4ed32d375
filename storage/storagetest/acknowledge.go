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

func (f *fixture) acknowledge(limit int, unfinished int, acknowledgements ...storage.Acknowledgement) []storage.Acknowledgement {
	f.Helper()
	got, err := f.store.Acknowledge(f.ctx, acknowledgements, limit)
	f.must(err)
	if len(got) != unfinished {
		f.Fatalf("%d acknowledgements are unfinished, want %d", len(got), unfinished)
	}
	return got
}

func acknowledgeNothing(f *fixture) {
	queued := f.send(alice, 2)
	f.acknowledge(10, 0)
	f.acknowledge(10, 0, through(bob, everLater), through(alice, 0), through(alice, queued[0].Position-1),
		through(types.Device{UserID: alice.UserID}, everLater), through(types.Device{DeviceID: alice.DeviceID}, everLater))
	f.wantMessages(alice, queued)
}

func acknowledgeRange(f *fixture) {
	tablet := types.Device{UserID: alice.UserID, DeviceID: "TABLET"}
	queued, others, tablets := f.send(alice, 5), f.send(bob, 5), f.send(tablet, 5)
	f.acknowledge(10, 0, through(alice, queued[1].Position), through(bob, others[3].Position))
	f.wantMessages(alice, queued[2:])
	f.wantMessages(bob, others[4:])
	f.wantMessages(tablet, tablets)
	f.acknowledge(10, 0, through(alice, queued[1].Position))
	f.wantMessages(alice, queued[2:])
	f.acknowledge(10, 0, through(alice, everLater))
	f.wantMessages(alice, nil)
	f.wantMessages(bob, others[4:])
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

func acknowledgeLimit(f *fixture) {
	queued, others := f.send(alice, 10), f.send(bob, 3)
	acknowledgement := through(alice, queued[7].Position)
	left := f.acknowledge(4, 1, acknowledgement, through(bob, everLater))
	if left[0] != acknowledgement {
		f.Errorf("%+v is unfinished, want %+v", left[0], acknowledgement)
	}
	f.wantMessages(alice, queued[4:])
	f.wantMessages(bob, nil)

	if left := f.acknowledge(0, 1, acknowledgement); left[0] != acknowledgement {
		f.Errorf("%+v is unfinished, want %+v", left[0], acknowledgement)
	}
	f.wantMessages(alice, queued[4:])

	// The fourth may have been the last: unfinished at most once more.
	for range 2 {
		left, err := f.store.Acknowledge(f.ctx, []storage.Acknowledgement{acknowledgement}, 4)
		f.must(err)
		f.wantMessages(alice, queued[8:])
		if len(left) == 0 {
			return
		}
	}
	f.Errorf("the acknowledgement never finishes; %d others", len(others))
}

func acknowledgeMerged(f *fixture) {
	queued := f.send(alice, 6)
	f.acknowledge(10, 0, through(alice, queued[1].Position), through(alice, queued[3].Position), through(alice, queued[0].Position))
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
	want := sent(deliveries)

	var acknowledgements []storage.Acknowledgement
	for i, device := range devices {
		acknowledgements = append(acknowledgements, through(device, want[i%5].Position))
	}
	given := slices.Clone(acknowledgements)
	left := f.acknowledge(5, 60, acknowledgements...) // a fifth of them reach the limit
	if !slices.Equal(given, acknowledgements) {
		f.Error("the caller's acknowledgements were changed")
	}
	for _, a := range left {
		if a.Through != want[4].Position {
			f.Errorf("%+v is unfinished", a)
		}
	}
	for i, device := range devices {
		f.wantMessages(device, want[i%5+1:])
	}
}
