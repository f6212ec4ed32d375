package writer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// What comes before the first position happens under the lock, before the claim, and decides where positions begin.
func TestPrepare(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		atLeast := types.Position(time.Now().Add(time.Hour).UnixMicro())
		f := start(t, open, func(o *writer.Options) {
			o.Prepare = func(ctx context.Context) (types.Position, error) {
				if _, err := open(t).Lock(ctx); !errors.Is(err, storage.ErrLocked) {
					t.Errorf("the lock is free: %v", err)
				}
				if state, err := o.Store.State(ctx); err != nil || state != (storage.State{}) {
					t.Errorf("the store is claimed: %+v, error %v", state, err)
				}
				return atLeast, nil
			}
		})
		if got := f.Published(); got < atLeast {
			t.Errorf("positions begin at %d, want %d", got, atLeast)
		}
		if err := f.Submit(f.ctx, message("first")); err != nil {
			t.Fatal(err)
		}
		if _, last := f.queue(t); last <= atLeast {
			t.Errorf("the first message has position %d, want one above %d", last, atLeast)
		}
	})
}

func TestPrepareFails(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		store, away := open(t), errors.New("the host's database is away")
		if err := store.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		w := writer.New(writer.Options{
			Store: store, Log: quiet(), Wake: (&fixture{}).wake,
			Prepare: func(context.Context) (types.Position, error) { return 0, away },
		})
		if err := w.Start(t.Context()); !errors.Is(err, away) {
			t.Errorf("the error is %v", err)
		}
		if state, err := store.State(t.Context()); err != nil || state != (storage.State{}) {
			t.Errorf("the store is claimed: %+v, error %v", state, err)
		}
		lock, err := open(t).Lock(t.Context())
		if err != nil {
			t.Fatalf("the lock is kept: %v", err)
		}
		if err = lock.Release(); err != nil {
			t.Error(err)
		}
	})
}
