package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/storage/storagetest"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func wantTransient(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, storage.ErrTransient) {
		t.Errorf("got the error %v, want a transient one", err)
	}
}

func TestSessionEndsDuringCommit(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	obstacle := begin(t, db, insertOfBatch)
	failure := make(chan error, 1)
	go func() { failure <- store.Commit(t.Context(), batch(last)) }()
	waitForWaiter(t, db, "%INSERT INTO todevice_transactions%")
	if _, err := db.Exec(`
		SELECT pg_terminate_backend(l.pid) FROM pg_locks l
		JOIN pg_locks held ON held.pid = l.pid AND held.relation = 'todevice_transactions'::regclass
		WHERE l.locktype = 'transactionid' AND NOT l.granted`); err != nil {
		t.Fatal(err)
	}
	wantTransient(t, <-failure)
	if err := obstacle.Rollback(); err != nil {
		t.Fatal(err)
	}
	state, err := store.State(t.Context())
	(stateAnswer{state, err}).mustBe(t, storage.State{Writer: writer, Last: last})
	if err := store.Commit(t.Context(), batch(last)); err != nil {
		t.Error(err)
	}
}

func TestServerStops(t *testing.T) {
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Remove(); err != nil {
			t.Error(err)
		}
	})
	store, last := newStore(t, server.URL)
	lock := mustLock(t, store)
	for name, stop := range map[string]func() error{"stop": server.Stop, "kill": server.Kill} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for range 3 { // the pool holds connections that don't know yet
			wantAllTransient(t, store, lock, last)
		}
		if err := server.Run(); err != nil {
			t.Fatal(err)
		}
		eventually(t, lock.Check)
		state, err := store.State(t.Context())
		(stateAnswer{state, err}).mustBe(t, storage.State{Writer: writer, Last: last})
		b := batch(last)
		b.Transactions = nil
		if err := store.Commit(t.Context(), b); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
		last = b.Last
	}
	messages, err := store.Messages(t.Context(), device, 0, last, 10, nil)
	if err != nil || len(messages) != 2 {
		t.Errorf("%d messages survived (%v), want 2", len(messages), err)
	}
}

func wantAllTransient(t *testing.T, store storage.Store, lock storage.Lock, last types.Position) {
	t.Helper()
	ctx := t.Context()
	wantTransient(t, store.Commit(ctx, batch(last)))
	_, err := store.State(ctx)
	wantTransient(t, err)
	_, err = store.Messages(ctx, device, 0, last, 1, nil)
	wantTransient(t, err)
	_, err = store.Stored(ctx, []types.TransactionKey{{Device: device}})
	wantTransient(t, err)
	_, err = store.Acknowledge(ctx, []storage.Acknowledgement{{Device: device, Through: 1}}, 1)
	wantTransient(t, err)
	_, err = store.ForgetTransactions(ctx, time.Now(), 1)
	wantTransient(t, err)
	_, err = store.Claim(ctx, "second", 0)
	wantTransient(t, err)
	for _, err := range storagetest.Errors(ctx, store) {
		wantTransient(t, err)
	}
	wantTransient(t, store.Migrate(ctx))
	_, err = store.Lock(ctx)
	wantTransient(t, err)
	wantTransient(t, lock.Check(ctx))
}

func TestTimeoutsAreTransient(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	_, last := newStore(t, url)
	obstacle := begin(t, db, `LOCK TABLE todevice_messages, todevice_position IN ACCESS EXCLUSIVE MODE`)
	for _, setting := range []string{"lock_timeout", "statement_timeout"} {
		impatient := postgres.New(openDB(t, url+"&"+setting+"=10"))
		wantTransient(t, impatient.Commit(t.Context(), batch(last)))
		if setting == "statement_timeout" {
			_, err := impatient.Messages(t.Context(), device, 0, last, 1, nil)
			wantTransient(t, err)
		}
	}
	if err := obstacle.Rollback(); err != nil {
		t.Fatal(err)
	}
	_, err := postgres.New(openDB(t, url+"&default_transaction_read_only=on")).Acknowledge(t.Context(),
		[]storage.Acknowledgement{{Device: device, Through: 1}}, 1)
	wantTransient(t, err)
}

// The original error stays in the chain, without what it says about the row.
func TestErrorKeepsTheCode(t *testing.T) {
	store, last := newStore(t, pgtest.NewSchema(t))
	b := batch(last)
	b.Deliveries = append(b.Deliveries, b.Deliveries[0])
	err := store.Commit(t.Context(), b)
	var fromServer *pq.Error
	if !errors.As(err, &fromServer) || fromServer.SQLState() != "23505" || fromServer.Detail != "" {
		t.Errorf("got the error %#v", err)
	}
}
