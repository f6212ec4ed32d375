package writer_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// records keeps what it is told.
type records struct {
	mu  sync.Mutex
	all []trace.Record
}

func (r *records) Record(more ...trace.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, more...)
}

// dropped returns how many messages of a device were dropped for a reason.
func (r *records) dropped(device types.Device, reason trace.Reason) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, record := range r.all {
		if record.Step == trace.Dropped && record.Recipient == device && record.Reason == reason {
			n += record.Count
		}
	}
	return n
}

// household is a writer, its cleaner, and the host's devices.
type household struct {
	*fixture
	*writer.Cleaner
	*accounts
	sender *writer.Sender
	trace  *records
}

func keepHouse(t *testing.T, open testdb.Open, deviceIDs ...string) *household {
	t.Helper()
	h := &household{
		fixture:  start(t, open, nil),
		accounts: &accounts{devices: map[string][]string{bob.UserID: deviceIDs}},
		trace:    &records{},
	}
	directory, err := devices.NewDirectory(h.accounts)
	if err != nil {
		t.Fatal(err)
	}
	h.sender = &writer.Sender{Directory: directory, Writer: h.Writer}
	h.Cleaner = writer.NewCleaner(writer.CleanerOptions{
		Store: h.store, Source: h.accounts, Directory: directory, Writer: h.Writer, Timeout: time.Minute,
		StoredAt: storedAt, Trace: h.trace, Log: quiet(),
	})
	return h
}

// storedAt takes the first positions for the host's own.
func storedAt(p types.Position) (time.Time, bool) { return p.Time(), p > 1000 }

func (h *household) send(deviceID string) error {
	return h.sender.Send(h.ctx, writer.Message{
		Sender: "@alice:test", Type: "org.example.x",
		Targets: []devices.Target{{Device: types.Device{UserID: bob.UserID, DeviceID: deviceID}, Content: []byte(`{}`)}},
	})
}

func bobs(deviceID string) types.Device { return types.Device{UserID: bob.UserID, DeviceID: deviceID} }

func (h *household) waiting(t *testing.T, deviceID string) int {
	t.Helper()
	messages, err := h.store.Store.Messages(h.ctx, bobs(deviceID), 0, 1<<62, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	return len(messages)
}

func (h *household) wantWaiting(t *testing.T, want map[string]int) {
	t.Helper()
	for deviceID, n := range want {
		if got := h.waiting(t, deviceID); got != n {
			t.Errorf("%d messages wait for %s, want %d", got, deviceID, n)
		}
	}
}

// leave stores what a device sent and what waits for it, whether it exists or not.
func (h *household) leave(t *testing.T, deviceID string) types.TransactionKey {
	t.Helper()
	key := types.TransactionKey{Device: bobs(deviceID), EventType: "org.example.x", TransactionID: "1"}
	err := h.Submit(h.ctx, writer.Submission{Parts: []writer.Part{{
		Sender: bob.UserID, Type: "org.example.x", Copies: []storage.Copy{{Device: bobs(deviceID), Content: []byte(`{}`)}},
		Transaction: key, Remember: time.Hour,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (h *household) remembered(t *testing.T, key types.TransactionKey) bool {
	t.Helper()
	stored, err := h.store.Stored(h.ctx, []types.TransactionKey{key})
	if err != nil {
		t.Fatal(err)
	}
	_, ok := stored[key]
	return ok
}

func TestDeletedDeviceLeavesNothing(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A", "B")
		a, b := h.leave(t, "A"), h.leave(t, "B")
		err := h.DeleteDevices(h.ctx, bob.UserID, func() error {
			h.set(bob.UserID, "B")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		h.wantWaiting(t, map[string]int{"A": 0, "B": 1})
		if h.remembered(t, a) || !h.remembered(t, b) {
			t.Error("the transactions of A are remembered, or those of B are not")
		}
		if n := h.trace.dropped(bobs("A"), trace.DeviceDeleted); n != 1 {
			t.Errorf("the trace tells of %d dropped messages, want 1", n)
		}
		if dropped := h.trace.all[len(h.trace.all)-1]; dropped.Position != h.Published() {
			t.Errorf("they are dropped up to %d, want the last position, %d", dropped.Position, h.Published())
		}
	})
}

func TestDeletionThatFailsHalfWay(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A", "B", "C")
		for _, deviceID := range []string{"A", "B", "C"} {
			h.leave(t, deviceID)
		}
		failure := errors.New("half way")
		err := h.DeleteDevices(h.ctx, bob.UserID, func() error {
			h.set(bob.UserID, "B", "C")
			return failure
		})
		if !errors.Is(err, failure) {
			t.Errorf("the error is %v, want the host's", err)
		}
		h.wantWaiting(t, map[string]int{"A": 0, "B": 1, "C": 1})
	})
}

// Messages that were on their way when the device was deleted, at the database or before it, reach nobody.
func TestDeletionOvertakesNothing(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A", "B")
		atTheDatabase, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		h.store.OnCommit(func(ctx context.Context, batch storage.Batch, real faulty.Commit) error {
			once.Do(func() { close(atTheDatabase); <-release })
			return real(ctx, batch)
		})
		sent := make(chan error, 3)
		go func() { sent <- h.send("A") }()
		<-atTheDatabase
		go func() { sent <- h.send("A") }()
		go func() { sent <- h.send(devices.AllDevices) }()
		h.waitQueued(t, 2)
		deleted := make(chan error, 1)
		removed := make(chan struct{})
		go func() {
			deleted <- h.DeleteDevices(h.ctx, bob.UserID, func() error {
				h.set(bob.UserID, "B")
				close(removed)
				return nil
			})
		}()
		<-removed
		h.waitQueued(t, 3) // with what the deletion waits for
		close(release)
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		h.wantWaiting(t, map[string]int{"A": 0})
		for range 3 {
			if err := <-sent; err != nil {
				t.Error(err)
			}
		}
		h.wantWaiting(t, map[string]int{"A": 0, "B": 1})
	})
}

// A request that was authenticated before its device was deleted leaves no transaction, which would swallow the message of the
// next device under that ID.
func TestDeletionOvertakesRequestsOfTheDevice(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A")
		carol := types.Device{UserID: "@carol:test", DeviceID: "C"}
		h.set(carol.UserID, carol.DeviceID)
		key := types.TransactionKey{Device: bobs("A"), EventType: "org.example.x", TransactionID: "1"}
		request := func() func() error {
			m := writer.Message{
				Sender: bob.UserID, Type: "org.example.x", Transaction: key, Remember: time.Hour,
				Targets:     []devices.Target{{Device: carol, Content: []byte(`{}`)}},
				NoneDeleted: h.sender.Directory.NoneDeleted(bob.UserID),
			}
			return func() error { return h.sender.Send(h.ctx, m) }
		}
		late, queued := request(), request()
		release := h.holdNextCommit(t)
		sent, deleted := make(chan error, 1), make(chan error, 1)
		go func() { sent <- queued() }()
		h.waitQueued(t, 1)
		go func() {
			deleted <- h.DeleteDevices(h.ctx, bob.UserID, func() error { h.set(bob.UserID); return nil })
		}()
		h.waitQueued(t, 2) // with what the deletion waits for
		release()
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"in the queue": <-sent, "before it": late()} {
			if !errors.Is(err, writer.ErrUnavailable) {
				t.Errorf("%s the error is %v", what, err)
			}
		}
		if h.remembered(t, key) {
			t.Error("a transaction of the deleted device is remembered")
		}
		wantStored := func(want int) {
			t.Helper()
			if got, err := h.store.Store.Messages(h.ctx, carol, 0, 1<<62, 10, nil); err != nil || len(got) != want {
				t.Errorf("%d messages are stored (%v), want %d", len(got), err, want)
			}
		}
		wantStored(0)
		if err := h.CreateDevice(h.ctx, bob.UserID, "A", func() error { h.set(bob.UserID, "A"); return nil }); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := request()(); err != nil {
				t.Errorf("the next device's request: %v", err)
			}
		}
		wantStored(1)
	})
}

// What a crash between the host's deletion and the clean-up has left, or a host without the module, is gone before a device
// of the same ID is there.
func TestCreatedDeviceFindsNothing(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "B")
		a := h.leave(t, "A")
		h.leave(t, "B")
		create := func() error {
			h.wantWaiting(t, map[string]int{"A": 0, "B": 1})
			h.set(bob.UserID, "A", "B")
			return nil
		}
		if err := h.CreateDevice(h.ctx, bob.UserID, "A", create); err != nil {
			t.Fatal(err)
		}
		if h.remembered(t, a) {
			t.Error("the transactions of the earlier device are remembered")
		}
		// Signing in again under the ID of a device that exists takes nothing from it.
		h.leave(t, "A")
		if err := h.CreateDevice(h.ctx, bob.UserID, "A", func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		h.wantWaiting(t, map[string]int{"A": 1, "B": 1})
	})
}

// The host shows a device to everybody before the call that creates it returns.
func TestDeviceGetsMessagesWhileItsCreationReturns(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "B")
		if err := h.send("B"); err != nil { // from then on bob's devices are known
			t.Fatal(err)
		}
		err := h.CreateDevice(h.ctx, bob.UserID, "NEW", func() error {
			h.set(bob.UserID, "B", "NEW")
			return h.send("NEW")
		})
		if err != nil {
			t.Fatal(err)
		}
		h.wantWaiting(t, map[string]int{"NEW": 1})
	})
}

// stuckStore is a database that never answers.
type stuckStore struct{ storage.Store }

func (stuckStore) Devices(ctx context.Context, _ string) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Whoever signs in or out gets an answer while the database is away, or the user's devices are being changed.
func TestChangesOfDevicesDoNotWaitForEver(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open)
		h.Store, h.Timeout = stuckStore{h.Store}, time.Millisecond
		caller, cancel := context.WithTimeout(h.ctx, time.Minute)
		defer cancel()
		unwanted := func() error {
			t.Error("the host was asked to change the devices")
			return errors.New("unwanted")
		}
		if err := h.CreateDevice(caller, bob.UserID, "A", unwanted); err == nil || caller.Err() != nil {
			t.Errorf("while the database is away the error is %v, that of the caller %v", err, caller.Err())
		}
		_ = h.DeleteDevices(caller, bob.UserID, func() error {
			for _, change := range []error{
				h.CreateDevice(caller, bob.UserID, "A", unwanted), h.DeleteDevices(caller, bob.UserID, unwanted),
			} {
				if !errors.Is(change, writer.ErrUnavailable) || caller.Err() != nil {
					t.Errorf("during a change the error is %v, that of the caller %v", change, caller.Err())
				}
			}
			// A device whose ID is new to everybody finds nothing, and need not wait.
			if err := h.CreateDevice(caller, bob.UserID, "", func() error { return nil }); err != nil {
				t.Errorf("a device without an ID of its own: %v", err)
			}
			return nil
		})
	})
}

// purgeFaults fails every purge.
type purgeFaults struct{ storage.Store }

func (purgeFaults) Purge(context.Context, types.Device, types.Position) (int, error) {
	return 0, faulty.ErrLost
}

func TestNoDeviceWithoutACleanUp(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open)
		h.leave(t, "A")
		h.Store = purgeFaults{h.store}
		err := h.CreateDevice(h.ctx, bob.UserID, "A", func() error {
			t.Error("the device was created over the queue of another")
			return nil
		})
		if !errors.Is(err, faulty.ErrLost) {
			t.Errorf("the error is %v", err)
		}
		if err = h.DeleteDevices(h.ctx, bob.UserID, func() error { return nil }); !errors.Is(err, faulty.ErrLost) {
			t.Errorf("the error of a deletion is %v", err)
		}
	})
}

func TestChangesOfOneUserTakeTurns(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A")
		inside, release := make(chan struct{}), make(chan struct{})
		first := make(chan error, 1)
		go func() {
			first <- h.DeleteDevices(h.ctx, bob.UserID, func() error {
				close(inside)
				<-release
				return nil
			})
		}()
		<-inside
		for range 2 { // whoever gives up leaves the turn to the first
			ctx, cancel := context.WithTimeout(h.ctx, 300*time.Millisecond)
			err := h.CreateDevice(ctx, bob.UserID, "A", func() error {
				t.Error("two changes of one user's devices ran at once")
				return nil
			})
			cancel()
			if !errors.Is(err, writer.ErrUnavailable) {
				t.Errorf("the error is %v", err)
			}
		}
		err := h.CreateDevice(h.ctx, "@carol:test", "A", func() error { return nil })
		if err != nil {
			t.Errorf("another user's change: %v", err)
		}
		close(release)
		if err = <-first; err != nil {
			t.Fatal(err)
		}
		if err = h.CreateDevice(h.ctx, bob.UserID, "A", func() error { return nil }); err != nil {
			t.Errorf("after the first change: %v", err)
		}
	})
}

// While devices come and go under load, none ever begins with a message, and none leaves one.
func TestDevicesComeAndGo(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "B")
		var quit atomic.Bool
		var sending sync.WaitGroup
		var sent atomic.Int64
		for range 3 {
			sending.Go(func() {
				for !quit.Load() {
					deviceID := "A"
					if rand.IntN(2) == 0 {
						deviceID = devices.AllDevices
					}
					if err := h.send(deviceID); err != nil {
						t.Error(err)
						return
					}
					sent.Add(1)
				}
			})
		}
		reached := 0
		for round := 0; round < 10 || reached == 0; round++ {
			err := h.CreateDevice(h.ctx, bob.UserID, "A", func() error {
				h.wantWaiting(t, map[string]int{"A": 0})
				h.set(bob.UserID, "A", "B")
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			goal := sent.Load() + 2
			waitFor(t, h.ctx, "more messages were sent", func() bool { return sent.Load() >= goal || t.Failed() })
			err = h.DeleteDevices(h.ctx, bob.UserID, func() error {
				reached += h.waiting(t, "A")
				h.set(bob.UserID, "B")
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			h.wantWaiting(t, map[string]int{"A": 0})
			if t.Failed() {
				break
			}
		}
		quit.Store(true)
		sending.Wait()
		h.wantWaiting(t, map[string]int{"A": 0})
	})
}
