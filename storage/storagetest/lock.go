package storagetest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func runLock(t *testing.T, newDatabase func(t *testing.T) Opener) {
	for name, test := range map[string]func(context.Context, *testing.T, Opener){
		"keeps others out":        lockExcludes,
		"before the tables exist": lockFirst,
		"release":                 lockRelease,
		"ended context":           lockCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
			defer cancel()
			test(ctx, t, newDatabase(t))
		})
	}
	t.Run("one for each database", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		mustLock(ctx, t, newDatabase(t)(t))
		mustLock(ctx, t, newDatabase(t)(t))
	})
}

func mustLock(ctx context.Context, t *testing.T, store storage.Store) storage.Lock {
	t.Helper()
	lock, err := store.Lock(ctx)
	must(t, err)
	t.Cleanup(func() { must(t, lock.Release()) })
	must(t, lock.Check(ctx))
	return lock
}

func mustBeLocked(ctx context.Context, t *testing.T, store storage.Store) {
	t.Helper()
	lock, err := store.Lock(ctx)
	if err == nil {
		t.Fatal("the lock was given twice", lock.Release())
	}
	if !errors.Is(err, storage.ErrLocked) || errors.Is(err, storage.ErrTransient) {
		t.Fatalf("got the error %v, want ErrLocked", err)
	}
	if !strings.Contains(err.Error(), "stop the other one first") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func lockExcludes(ctx context.Context, t *testing.T, open Opener) {
	first, second := open(t), open(t)
	must(t, first.Migrate(ctx))
	lock := mustLock(ctx, t, first)
	mustBeLocked(ctx, t, second)
	mustBeLocked(ctx, t, first)
	must(t, lock.Check(ctx))
	// Reading and migrating need no lock.
	must(t, second.Migrate(ctx))
	if _, err := second.State(ctx); err != nil {
		t.Error(err)
	}
	if _, err := second.Messages(ctx, alice, 0, everLater, 1, nil); err != nil {
		t.Error(err)
	}
}

func lockFirst(ctx context.Context, t *testing.T, open Opener) {
	first, second := open(t), open(t)
	lock := mustLock(ctx, t, first)
	must(t, first.Migrate(ctx))
	mustBeLocked(ctx, t, second)
	must(t, lock.Check(ctx))
}

func lockRelease(ctx context.Context, t *testing.T, open Opener) {
	stores := []storage.Store{open(t), open(t)}
	for i := range 4 {
		mine, other := stores[i%2], stores[(i+1)%2]
		lock := mustLock(ctx, t, mine)
		mustBeLocked(ctx, t, other)
		must(t, lock.Release())
		if err := lock.Check(ctx); err == nil {
			t.Error("a released lock passes for held")
		}
		next := mustLock(ctx, t, other)
		must(t, lock.Release()) // once more: it must not release the next one
		must(t, next.Check(ctx))
		mustBeLocked(ctx, t, mine)
		must(t, next.Release())
	}
}

func lockCancelled(ctx context.Context, t *testing.T, open Opener) {
	store := open(t)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := store.Lock(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("got the error %v", err)
	}
	mustLock(ctx, t, store)
}
