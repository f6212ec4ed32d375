package storagetest

import (
	"context"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func runMigrate(t *testing.T, newDatabase func(t *testing.T) Opener) {
	for name, test := range map[string]func(context.Context, *testing.T, Opener){
		"from nothing": migrateFresh,
		"twice":        migrateTwice,
		"concurrently": migrateConcurrently,
		"not at all":   migrateNot,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
			defer cancel()
			test(ctx, t, newDatabase(t))
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func migrateFresh(ctx context.Context, t *testing.T, open Opener) {
	store := open(t)
	must(t, store.Migrate(ctx))
	state, err := store.State(ctx)
	must(t, err)
	if state != (storage.State{}) {
		t.Errorf("the state before the first claim is %+v", state)
	}
	last, err := store.Claim(ctx, "first", 0)
	must(t, err)
	if last != 1 {
		t.Errorf("the first claim returned %d, want 1", last)
	}
}

func migrateTwice(ctx context.Context, t *testing.T, open Opener) {
	f := newFixture(t, open)
	queued := f.send(alice, 2)
	must(t, f.store.Migrate(ctx))
	must(t, open(t).Migrate(ctx))
	f.wantMessages(alice, queued)
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

func migrateConcurrently(ctx context.Context, t *testing.T, open Opener) {
	var migrations []func() error
	for range 4 {
		store := open(t)
		migrations = append(migrations, func() error { return store.Migrate(ctx) })
	}
	must(t, concurrently(migrations...))
	newFixture(t, open).send(alice, 1)
}

func migrateNot(ctx context.Context, t *testing.T, open Opener) {
	store := open(t)
	if _, err := store.State(ctx); err == nil {
		t.Error("a store without tables has a state")
	}
	if _, err := store.Messages(ctx, alice, 0, everLater, 1, nil); err == nil {
		t.Error("a store without tables passes for an empty queue")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := store.Migrate(ended); err == nil {
		t.Error("migrated in an ended context")
	}
	must(t, store.Migrate(ctx))
}
