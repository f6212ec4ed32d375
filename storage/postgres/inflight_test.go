package postgres_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// waitLimit turns a hang into a failure.
const waitLimit = time.Minute

const writer = "first"

var device = types.Device{UserID: "@alice:x", DeviceID: "A"}

func newStore(t *testing.T, url string) (storage.Store, types.Position) {
	t.Helper()
	store := postgres.New(openDB(t, url))
	if err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, err := store.Claim(t.Context(), writer, 1)
	if err != nil {
		t.Fatal(err)
	}
	return store, last
}

func batch(previous types.Position) storage.Batch {
	return storage.Batch{
		Writer: writer, Previous: previous, Last: previous + 1,
		Deliveries: []storage.Delivery{{
			Position: previous + 1, Sender: "@bob:x", Type: "m.a",
			Copies: []storage.Copy{{Device: device, Content: []byte(`{}`)}},
		}},
		Transactions: []storage.Transaction{{
			TransactionKey: types.TransactionKey{Device: device, EventType: "m.a", TransactionID: "1"},
			ExpiresAt:      time.Now(),
		}},
	}
}

// insertOfBatch inserts the transaction that batch has. As long as it is not committed, a commit of that batch waits for it,
// in the middle of its statement.
const insertOfBatch = `INSERT INTO todevice_transactions VALUES ('@alice:x', 'A', 'm.a', '1', 0)`

func begin(t *testing.T, db *sql.DB, statement string, args ...any) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	if _, err = tx.Exec(statement, args...); err != nil {
		t.Fatal(err)
	}
	return tx
}

// waitForWaiter returns once a session waits for a lock in the test's schema.
func waitForWaiter(t *testing.T, db *sql.DB, like string) {
	t.Helper()
	waitForSessions(t, db, `wait_event_type = 'Lock' AND query LIKE $1`, func(n int) bool { return n > 0 }, like)
}

// waitForSessions returns once there are enough sessions, of those that have locks in the test's schema,
// for which the condition is true.
func waitForSessions(t *testing.T, db *sql.DB, condition string, enough func(int) bool, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	for done := false; !done; {
		var n int
		err := db.QueryRowContext(ctx, `
			SELECT count(*) FROM pg_stat_activity
			WHERE `+condition+` AND pid <> pg_backend_pid()
				AND EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
					WHERE l.pid = pg_stat_activity.pid AND c.relnamespace = current_schema()::regnamespace)`,
			args...).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		done = enough(n)
	}
}

type stateAnswer struct {
	state storage.State
	err   error
}

func askState(t *testing.T, store storage.Store) chan stateAnswer {
	answer := make(chan stateAnswer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
		defer cancel()
		state, err := store.State(ctx)
		answer <- stateAnswer{state, err}
	}()
	return answer
}

func (a stateAnswer) mustBe(t *testing.T, want storage.State) {
	t.Helper()
	if a.err != nil || a.state != want {
		t.Fatalf("the state is %+v (%v), want %+v", a.state, a.err, want)
	}
}

func TestStateWaitsForACommit(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	commit := begin(t, db, `UPDATE todevice_position SET last = $1`, last+1)
	answer := askState(t, store)
	waitForWaiter(t, db, "%FROM todevice_position%FOR UPDATE%")
	if err := commit.Commit(); err != nil {
		t.Fatal(err)
	}
	(<-answer).mustBe(t, storage.State{Writer: writer, Last: last + 1})
}

// A commit is on the server when its connection is lost. Until the server gives it up, nobody may
// be told that it was not carried out.
func TestStateWaitsForALostCommit(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	network := newProxy(t, url)
	lost := postgres.New(openDB(t, network.url))
	obstacle := begin(t, db, insertOfBatch)

	failure := make(chan error, 1)
	go func() { failure <- lost.Commit(t.Context(), batch(last)) }()
	waitForWaiter(t, db, "%INSERT INTO todevice_transactions%")
	network.cut()
	if err := <-failure; !errors.Is(err, storage.ErrTransient) {
		t.Fatalf("got the error %v, want a transient one", err)
	}

	answer := askState(t, store)
	waitForWaiter(t, db, "%FROM todevice_position%FOR UPDATE%")
	select {
	case early := <-answer:
		t.Fatalf("the state %+v (%v) came before the commit had ended", early.state, early.err)
	default:
	}
	// The network keeps silent, so the server waits for the rest of the transaction, but not for long.
	if err := obstacle.Rollback(); err != nil {
		t.Fatal(err)
	}
	(<-answer).mustBe(t, storage.State{Writer: writer, Last: last})
	if err := store.Commit(t.Context(), batch(last)); err != nil {
		t.Error(err)
	}
}

func TestCommitsMeetAtTheFence(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	claim := begin(t, db, `UPDATE todevice_position SET writer = 'second', last = last + 1`)
	failure := make(chan error, 1)
	go func() { failure <- store.Commit(t.Context(), batch(last)) }()
	waitForWaiter(t, db, "%UPDATE todevice_position%")
	if err := claim.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-failure; !errors.Is(err, storage.ErrFenced) {
		t.Errorf("got the error %v, want ErrFenced", err)
	}
}

// Two processes acknowledge the same messages: the one that comes second deletes nothing, and may
// not take that for the end of the queue.
func TestAcknowledgeBehindAnother(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	b := batch(last)
	b.Last += 3
	for i := range types.Position(3) {
		d := b.Deliveries[0]
		d.Position += 1 + i
		b.Deliveries = append(b.Deliveries, d)
	}
	if err := store.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	other := begin(t, db, `DELETE FROM todevice_messages WHERE position <= $1`, last+2)
	type answer struct {
		acknowledged []storage.Acknowledged
		err          error
	}
	answers := make(chan answer, 1)
	go func() {
		acknowledged, err := store.Acknowledge(t.Context(), []storage.Acknowledgement{{Device: device, Through: b.Last}}, 2)
		answers <- answer{acknowledged, err}
	}()
	waitForWaiter(t, db, "%DELETE FROM todevice_messages%")
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	got := <-answers
	if got.err != nil {
		t.Fatal(got.err)
	}
	left, err := store.Messages(t.Context(), device, 0, b.Last, 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := storage.Acknowledged{Acknowledgement: storage.Acknowledgement{Device: device, Through: b.Last}, Unfinished: true}
	if len(left) != 2 || len(got.acknowledged) != 1 || got.acknowledged[0] != want {
		t.Errorf("%d messages are left, and %+v was acknowledged", len(left), got.acknowledged)
	}
}
