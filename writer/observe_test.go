package writer_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// startObserved returns the number of the failures that are observed, too.
func startObserved(t *testing.T, open testdb.Open) (*fixture, *atomic.Int64) {
	t.Helper()
	failures := &atomic.Int64{}
	return start(t, open, func(o *writer.Options) {
		o.Observe = func(c writer.Commit) {
			if c.Err != nil {
				failures.Add(1)
			}
		}
	}), failures
}

// A database that is away fails before anything is committed, and what became of a commit can't be asked.
func TestEveryFailureIsObserved(t *testing.T) {
	for name, lose := range map[string]func(f *fixture, err func() error){
		"before a commit": func(f *fixture, err func() error) {
			if err := f.Submit(f.ctx, message("x")); err != nil { // its repetition is looked up
				t.Fatal(err)
			}
			f.store.OnStored(func(context.Context, []types.TransactionKey) error { return err() })
		},
		"after a commit": func(f *fixture, err func() error) {
			f.store.LoseAnswer(1)
			f.store.OnState(err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, open testdb.Open) {
				f, failures := startObserved(t, open)
				var back atomic.Bool
				lose(f, func() error {
					if back.Load() {
						return nil
					}
					return faulty.ErrLost
				})
				done := make(chan error, 1)
				go func() { done <- f.Submit(f.ctx, message("x")) }()
				waitFor(t, f.ctx, "failures were observed", func() bool { return failures.Load() >= 3 })
				back.Store(true)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				f.wantQueue(t, "x")
			})
		})
	}
}

// Whoever gives up, or stops the server, is no failure of the database.
func TestGivingUpIsNoFailure(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f, failures := startObserved(t, open)
		release := f.holdNextCommit(t)
		ctx, cancel := context.WithCancel(f.ctx)
		gone := make(chan error, 1)
		go func() { gone <- f.Submit(ctx, message("gone")) }()
		f.waitQueued(t, 1)
		cancel()
		if err := <-gone; !errors.Is(err, writer.ErrUnavailable) {
			t.Errorf("the request that was given up has the error %v", err)
		}
		release()
		if err := f.Submit(f.ctx, message("next")); err != nil {
			t.Fatal(err)
		}
		stop, stopNow := context.WithCancel(f.ctx)
		f.store.OnStored(func(ctx context.Context, _ []types.TransactionKey) error {
			stopNow()
			<-ctx.Done()
			return ctx.Err()
		})
		last := make(chan error, 1)
		go func() { last <- f.Submit(f.ctx, message("next")) }()
		<-stop.Done()
		if err := f.Stop(stop); err != nil {
			t.Error(err)
		}
		if err := <-last; err == nil {
			t.Error("a message that was given up is said to be stored")
		}
		f.wantQueue(t, "first", "next")
		if n := failures.Load(); n != 0 {
			t.Errorf("%d failures of the database are observed", n)
		}
	})
}
