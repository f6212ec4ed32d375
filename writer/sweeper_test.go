package writer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

func TestSweepRemovesWhatIsLeft(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "B")
		a, b := h.leave(t, "A"), h.leave(t, "B")
		remote := types.TransactionKey{Device: types.Device{UserID: "remote"}, EventType: "m.direct_to_device", TransactionID: "1"}
		err := h.Submit(h.ctx, writer.Submission{Parts: []writer.Part{{Transaction: remote, Remember: time.Hour}}})
		if err != nil {
			t.Fatal(err)
		}
		h.Virtual = func(deviceID string) bool { return deviceID == "AS" }
		virtual := h.leave(t, "AS")
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{}, quiet())
		if err = sweeper.Sweep(h.ctx); err != nil {
			t.Fatal(err)
		}
		h.wantWaiting(t, map[string]int{"A": 0, "B": 1, "AS": 0})
		if h.remembered(t, a) || !h.remembered(t, b) || !h.remembered(t, remote) || !h.remembered(t, virtual) {
			t.Error("the wrong transactions are remembered")
		}
	})
}

// A host that can't say which devices exist deletes nothing.
func TestSweepWithoutTheHostsAnswer(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open)
		h.leave(t, "A")
		failure := errors.New("no answer")
		h.err = failure // nothing else runs
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{Messages: 100}, quiet())
		if err := sweeper.Sweep(h.ctx); !errors.Is(err, failure) {
			t.Errorf("the error is %v", err)
		}
		h.wantWaiting(t, map[string]int{"A": 1})
	})
}

// fill stores n messages of about a kilobyte, with names from first on.
func (h *household) fill(t *testing.T, deviceID string, first, n int) {
	t.Helper()
	var s writer.Submission
	for i := range n {
		s.Parts = append(s.Parts, writer.Part{
			Sender: "@alice:test", Type: fmt.Sprintf("org.example.%d", first+i),
			Copies: []storage.Copy{{Device: bobs(deviceID), Content: fmt.Appendf(nil, `{"x":"%01000d"}`, i)}},
		})
	}
	if err := h.Submit(h.ctx, s); err != nil {
		t.Fatal(err)
	}
}

func (h *household) names(t *testing.T, deviceID string) (names []string) {
	t.Helper()
	messages, err := h.store.Store.Messages(h.ctx, bobs(deviceID), 0, 1<<62, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		names = append(names, m.Type[len("org.example."):])
	}
	return names
}

func TestFullQueueDropsTheOldest(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		for name, bounds := range map[string]writer.Bounds{
			"messages": {Messages: 3},
			"bytes":    {Bytes: 3500},
			"both":     {Messages: 1000, Bytes: 3500},
		} {
			h := keepHouse(t, open, name, "other")
			h.fill(t, name, 0, 10)
			h.fill(t, "other", 0, 3)
			sweeper := writer.NewSweeper(h.Cleaner, bounds, quiet())
			sweeper.Interval = 10 * time.Millisecond
			sweeper.Start(h.ctx)
			waitFor(t, h.ctx, "the first sweep held the queue to its bounds", func() bool { return len(h.names(t, name)) == 3 })
			h.fill(t, name, 10, 2)
			sweeper.Grown([]writer.Wakeup{{UserID: bob.UserID, DeviceIDs: []string{name}}})
			waitFor(t, h.ctx, "the queue that grew was held to its bounds", func() bool { return len(h.names(t, name)) == 3 })
			waitFor(t, h.ctx, "the trace was told of 9 messages", func() bool { return h.trace.dropped(bobs(name), trace.QueueFull) == 9 })
			sweeper.Stop()
			if got := h.names(t, name); !slices.Equal(got, []string{"9", "10", "11"}) {
				t.Errorf("%s: left are %v, want the newest", name, got)
			}
			if got := h.names(t, "other"); len(got) != 3 {
				t.Errorf("%s: the other queue has %v left", name, got)
			}
			if err := h.Stop(h.ctx); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// What a user's queues are kept for who is none of the server's own any more is left alone, and holds up nobody.
func TestSweepPassesOverUsersOfOtherServers(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open)
		h.leave(t, "A")
		h.err = devices.ErrNotLocal
		if err := writer.NewSweeper(h.Cleaner, writer.Bounds{}, quiet()).Sweep(h.ctx); err != nil {
			t.Errorf("the sweep fails with %v, and would begin anew all the time", err)
		}
		h.wantWaiting(t, map[string]int{"A": 1})
	})
}

// A clean-up that failed when the device was deleted is made up for soon.
func TestSweeperCleansAgain(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A")
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{}, quiet())
		h.leave(t, "A")
		faults := &purgeFaultsOnce{Store: h.store}
		faults.failures.Store(3)
		h.Store = faults
		err := h.DeleteDevices(h.ctx, bob.UserID, func() error {
			h.set(bob.UserID)
			return nil
		})
		if !errors.Is(err, faulty.ErrLost) {
			t.Fatalf("the error is %v", err)
		}
		h.wantWaiting(t, map[string]int{"A": 1})
		for range 3 { // two of which fail
			sweeper.CleanAgain(h.ctx)
		}
		h.wantWaiting(t, map[string]int{"A": 0})
	})
}

// A removal whose answer was lost can be carried out after the clean-up, when messages have come for what it removes.
func TestSweeperCleansAfterALateRemoval(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A", "B")
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{}, quiet())
		lost := errors.New("the connection was lost")
		if err := h.DeleteDevices(h.ctx, bob.UserID, func() error { return lost }); !errors.Is(err, lost) {
			t.Fatalf("the error is %v, want the host's", err)
		}
		if err := h.send(devices.AllDevices); err != nil {
			t.Fatal(err)
		}
		h.set(bob.UserID, "B")
		sweeper.CleanAgain(h.ctx)
		h.wantWaiting(t, map[string]int{"A": 0, "B": 1})
	})
}

// A device that was deleted past the module gets no more messages once its queue was found.
func TestSweepTellsTheDirectory(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A", "B")
		if err := h.send(devices.AllDevices); err != nil {
			t.Fatal(err)
		}
		h.set(bob.UserID, "B")
		if err := writer.NewSweeper(h.Cleaner, writer.Bounds{}, quiet()).Sweep(h.ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.send(devices.AllDevices); err != nil {
			t.Fatal(err)
		}
		h.wantWaiting(t, map[string]int{"A": 0, "B": 2})
	})
}

// purgeFaultsOnce fails the first purges.
type purgeFaultsOnce struct {
	storage.Store
	failures atomic.Int64
}

func (p *purgeFaultsOnce) Purge(ctx context.Context, device types.Device, through types.Position) (int, error) {
	if p.failures.Add(-1) >= 0 {
		return 0, faulty.ErrLost
	}
	return p.Store.Purge(ctx, device, through)
}

// excessFaults fails the first looks at a queue after those of a sweep.
type excessFaults struct {
	storage.Store
	failures atomic.Int64
}

func (e *excessFaults) Excess(ctx context.Context, device types.Device, messages int, bytes int64) (types.Position, error) {
	if e.failures.Add(-1) >= 0 {
		return 0, faulty.ErrLost
	}
	return e.Store.Excess(ctx, device, messages, bytes)
}

func TestQueueThatGrewIsLookedAtAgainAfterAFailure(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A")
		faults := &excessFaults{Store: h.store}
		h.Store = faults
		h.fill(t, "A", 0, 1)
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{Messages: 3}, quiet())
		if err := sweeper.Sweep(h.ctx); err != nil {
			t.Fatal(err)
		}
		h.fill(t, "A", 1, 9)
		faults.failures.Store(3)
		for range 4 {
			_ = sweeper.BoundGrown(h.ctx)
			sweeper.Grown(nil)
		}
		if got := h.names(t, "A"); len(got) != 10 {
			t.Errorf("a queue that nobody told of was looked at: %v are left", got)
		}
		faults.failures.Store(2)
		sweeper.Grown([]writer.Wakeup{{UserID: bob.UserID, DeviceIDs: []string{"A"}}})
		for i := range 3 {
			if err := sweeper.BoundGrown(h.ctx); (err != nil) != (i < 2) {
				t.Errorf("look %d: %v", i, err)
			}
		}
		if got := h.names(t, "A"); !slices.Equal(got, []string{"7", "8", "9"}) {
			t.Errorf("left are %v", got)
		}
	})
}

// longSweep is a store of which the sweep does not come to its end.
type longSweep struct{ storage.Store }

func (longSweep) Users(ctx context.Context, _ string, _ int) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestGrownQueuesDoNotWaitForASweep(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A")
		h.Store = longSweep{h.store}
		h.fill(t, "A", 0, 10)
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{Messages: 3}, quiet())
		sweeper.Interval = 10 * time.Millisecond
		sweeper.Start(h.ctx)
		defer sweeper.Stop()
		sweeper.Grown([]writer.Wakeup{{UserID: bob.UserID, DeviceIDs: []string{"A"}}})
		waitFor(t, h.ctx, "the queue was held to its bound", func() bool { return len(h.names(t, "A")) == 3 })
	})
}

// watchedStore is a store of which the sweep does not come to its end, and that says when it is asked what it keeps of a user.
type watchedStore struct {
	storage.Store
	asked chan string
}

func (w watchedStore) Users(ctx context.Context, after string, limit int) ([]string, error) {
	return longSweep{w.Store}.Users(ctx, after, limit)
}

func (w watchedStore) Devices(ctx context.Context, userID string) ([]string, error) {
	select {
	case w.asked <- userID:
	default:
	}
	return w.Store.Devices(ctx, userID)
}

// The clean-up after a deletion waits for the user's turn, which one that leaves many rooms keeps for minutes.
func TestGrownQueuesDoNotWaitForACleanUp(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A")
		h.leave(t, "GONE")
		h.Store = purgeFaults{h.store}
		if err := h.DeleteDevices(h.ctx, bob.UserID, func() error { return nil }); !errors.Is(err, faulty.ErrLost) {
			t.Fatalf("the error is %v", err)
		}
		store := watchedStore{h.store, make(chan string, 1)}
		h.Store = store
		inside, release, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			_ = h.DeleteDevices(h.ctx, bob.UserID, func() error { close(inside); <-release; return nil })
		}()
		<-inside
		defer func() { close(release); <-done }()
		h.fill(t, "A", 0, 10)
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{Messages: 3}, quiet())
		sweeper.Interval = 10 * time.Millisecond
		sweeper.Start(h.ctx)
		defer sweeper.Stop()
		<-store.asked // the clean-up has begun
		sweeper.Grown([]writer.Wakeup{{UserID: bob.UserID, DeviceIDs: []string{"A"}}})
		waitFor(t, h.ctx, "the queue was held to its bound", func() bool { return len(h.names(t, "A")) == 3 })
	})
}

func TestOldMessagesAreDropped(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		h := keepHouse(t, open, "A", "imported")
		commit := func(deviceID string, positions ...types.Position) {
			t.Helper()
			state, err := h.store.State(h.ctx)
			if err != nil {
				t.Fatal(err)
			}
			batch := storage.Batch{Writer: state.Writer, Previous: state.Last, Last: max(state.Last, slices.Max(positions)) + 1}
			for _, p := range positions {
				batch.Deliveries = append(batch.Deliveries, storage.Delivery{
					Position: p, Sender: "@alice:test", Type: "org.example.x",
					Copies: []storage.Copy{{Device: bobs(deviceID), Content: []byte(`{}`)}},
				})
			}
			if err = h.store.Store.Commit(h.ctx, batch); err != nil {
				t.Fatal(err)
			}
		}
		now := time.Now()
		ago := func(d time.Duration) types.Position { return types.Position(now.Add(-d).UnixMicro()) }
		commit("A", ago(49*time.Hour), ago(47*time.Hour), ago(0))
		commit("imported", 17, ago(50*time.Hour), ago(1))
		sweeper := writer.NewSweeper(h.Cleaner, writer.Bounds{Age: 48 * time.Hour}, quiet())
		if err := sweeper.Sweep(h.ctx); err != nil {
			t.Fatal(err)
		}
		h.wantWaiting(t, map[string]int{"A": 2, "imported": 3})
		if n := h.trace.dropped(bobs("A"), trace.TooOld); n != 1 {
			t.Errorf("the trace tells of %d dropped messages, want 1", n)
		}
	})
}
