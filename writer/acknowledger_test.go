package writer_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// deletionFaults fails acknowledgements while it is told to.
type deletionFaults struct {
	storage.Store
	failing atomic.Bool
	failed  atomic.Int64
}

func (d *deletionFaults) Acknowledge(ctx context.Context, a []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	if d.failing.Load() {
		d.failed.Add(1)
		return nil, faulty.ErrLost
	}
	return d.Store.Acknowledge(ctx, a, limit)
}

func waitFor(t *testing.T, ctx context.Context, what string, condition func() bool) {
	t.Helper()
	for !condition() {
		if ctx.Err() != nil {
			t.Fatalf("it never happened that %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAcknowledgedIsHiddenThenDeleted(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		for _, name := range []string{"one", "two"} {
			if err := f.Submit(f.ctx, message(name)); err != nil {
				t.Fatal(err)
			}
		}
		two := f.Published()
		if err := f.Submit(f.ctx, message("three")); err != nil {
			t.Fatal(err)
		}
		store := &deletionFaults{Store: f.store}
		store.failing.Store(true)
		a := writer.NewAcknowledger(store, quiet())
		a.Start(f.ctx)
		a.Acknowledge(bob, two)
		a.Acknowledge(bob, two-1) // an older token takes nothing back
		waitFor(t, f.ctx, "the deletion failed", func() bool { return store.failed.Load() > 0 })
		if got := a.Acknowledged(bob); got != two {
			t.Errorf("hidden up to %d, want %d while the messages are not deleted", got, two)
		}
		f.wantQueue(t, "one", "two", "three")
		store.failing.Store(false)
		waitFor(t, f.ctx, "the deletion was done", func() bool { return a.Acknowledged(bob) == 0 })
		f.wantQueue(t, "three")
		a.Stop(f.ctx)
	})
}

func TestAcknowledgerDeletesAHugeQueueInParts(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		var stored sync.WaitGroup
		for range 2500 {
			stored.Go(func() {
				if err := f.Submit(f.ctx, plain("x")); err != nil {
					t.Error(err)
				}
			})
		}
		stored.Wait() // and published
		a := writer.NewAcknowledger(f.store, quiet())
		a.Start(f.ctx)
		defer a.Stop(f.ctx)
		a.Acknowledge(bob, f.Published())
		waitFor(t, f.ctx, "the queue was deleted", func() bool { return a.Acknowledged(bob) == 0 })
		f.wantQueue(t)
	})
}

func TestAcknowledgerStopDeletesWhatIsPending(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		if err := f.Submit(f.ctx, message("one")); err != nil {
			t.Fatal(err)
		}
		a := writer.NewAcknowledger(f.store, quiet())
		a.Start(f.ctx)
		a.Acknowledge(bob, f.Published())
		a.Acknowledge(types.Device{UserID: "@nobody:test", DeviceID: "X"}, f.Published())
		a.Stop(f.ctx)
		f.wantQueue(t)
	})
}

// failingFor fails acknowledgements that have one of a device.
type failingFor struct {
	storage.Store
	device types.Device
}

func (s failingFor) Acknowledge(ctx context.Context, a []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	if slices.ContainsFunc(a, func(a storage.Acknowledgement) bool { return a.Device == s.device }) {
		return nil, faulty.ErrFails
	}
	return s.Store.Acknowledge(ctx, a, limit)
}

// A corrupt part of an index keeps only what stands there from being deleted.
func TestAcknowledgerPassesOverAFault(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		if err := f.Submit(f.ctx, message("one")); err != nil {
			t.Fatal(err)
		}
		broken := types.Device{UserID: "@broken:test", DeviceID: "X"}
		a := writer.NewAcknowledger(failingFor{f.store, broken}, quiet())
		a.Acknowledge(broken, f.Published())
		a.Acknowledge(bob, f.Published())
		a.Start(f.ctx)
		defer a.Stop(f.ctx)
		waitFor(t, f.ctx, "the deletion was done", func() bool { return a.Acknowledged(bob) == 0 })
		f.wantQueue(t)
		if a.Acknowledged(broken) == 0 {
			t.Error("what could not be deleted was forgotten")
		}
	})
}

// endless is a store that deletes everything at once.
type endless struct {
	storage.Store
	deleted int
}

func (s *endless) Acknowledge(_ context.Context, all []storage.Acknowledgement, _ int) ([]storage.Acknowledged, error) {
	s.deleted += len(all)
	return nil, nil
}

// A deletion doesn't wait for more once there is enough for it.
func TestManyAcknowledgementsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 10_000
		store := &endless{}
		a := writer.NewAcknowledger(store, quiet())
		for i := range many {
			a.Acknowledge(types.Device{UserID: bob.UserID, DeviceID: fmt.Sprint(i)}, 1)
		}
		started := time.Now()
		a.Start(t.Context())
		for a.Pending() > 0 {
			time.Sleep(time.Millisecond)
		}
		if waited := time.Since(started); waited > 50*time.Millisecond {
			t.Errorf("the deletion of %d acknowledgements waited for %v", many, waited)
		}
		a.Stop(t.Context())
		if store.deleted != many {
			t.Errorf("%d acknowledgements were carried out", store.deleted)
		}
	})
}
