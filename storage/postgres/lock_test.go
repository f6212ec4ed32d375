package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
)

func mustLock(t *testing.T, store storage.Store) storage.Lock {
	t.Helper()
	lock, err := store.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lock.Release(); err != nil {
			t.Error(err)
		}
	})
	return lock
}

// eventually calls f until it returns nil. Every error on the way has to be a transient one.
func eventually(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if !errors.Is(err, storage.ErrTransient) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// endLockSession ends the one session that holds an advisory lock in this test's schema.
func endLockSession(t *testing.T, db *sql.DB) {
	t.Helper()
	result, err := db.ExecContext(t.Context(), `
		SELECT pg_terminate_backend(pid) FROM pg_locks
		WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32) + objid::bigint =
			hashtextextended('todevice_writer ' || current_schema(), 0)`)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		t.Fatalf("%d sessions hold the lock (%v)", n, err)
	}
}

func TestLockIsTakenAgain(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	lock := mustLock(t, postgres.New(openDB(t, url)))
	endLockSession(t, db)
	eventually(t, lock.Check)
	if _, err := postgres.New(db).Lock(t.Context()); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("after Check returned nil another process got the error %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	mustLock(t, postgres.New(db))
}

func TestLockIsTakenByAnother(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	lock := mustLock(t, postgres.New(openDB(t, url)))
	other := postgres.New(db)
	endLockSession(t, db)
	var theirs storage.Lock
	for theirs == nil { // until the server has ended the session
		var err error
		if theirs, err = other.Lock(t.Context()); err != nil && !errors.Is(err, storage.ErrLocked) {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := lock.Check(t.Context()); !errors.Is(err, storage.ErrLocked) || errors.Is(err, storage.ErrTransient) {
			t.Errorf("got the error %v, want ErrLocked", err)
		}
	}
	if err := theirs.Release(); err != nil {
		t.Fatal(err)
	}
	if err := lock.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := other.Lock(t.Context()); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("got the error %v, want ErrLocked", err)
	}
}

// The server has not noticed that the connection is lost: our own old session holds the lock, and must
// not pass for another process.
func TestLockOutlivesTheNetwork(t *testing.T) {
	url := pgtest.NewSchema(t)
	network := newProxy(t, url)
	lock := mustLock(t, postgres.New(openDB(t, network.url)))
	for range 3 {
		network.cut()
		eventually(t, lock.Check)
	}
	if _, err := postgres.New(openDB(t, url)).Lock(t.Context()); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("got the error %v, want ErrLocked", err)
	}
}

func TestReleaseOfALostLock(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	lock := mustLock(t, postgres.New(openDB(t, url)))
	endLockSession(t, db)
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}
