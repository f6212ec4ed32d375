package postgres_test

import (
	"context"
	"database/sql"
	"regexp"
	"strconv"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// queue commits n EDUs for each destination and returns the last position.
func queue(t *testing.T, store storage.Store, last types.Position, n int, destinations ...string) types.Position {
	t.Helper()
	b := storage.Batch{Writer: writer, Previous: last, Last: last + types.Position(n)}
	for i := range n {
		for _, destination := range destinations {
			b.EDUs = append(b.EDUs, storage.EDU{Destination: destination, Position: last + types.Position(i) + 1, Content: []byte(`{}`)})
		}
	}
	if err := store.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b.Last
}

func wantLine(t *testing.T, store storage.Store, destination string, want int) {
	t.Helper()
	line, err := store.Waiting(t.Context(), destination, 0, 1<<60, 1<<20, 1<<40)
	if err != nil || len(line) != want {
		t.Errorf("%d EDUs wait for %s (%v), want %d", len(line), destination, err, want)
	}
}

// What the other one is about to delete is no reason to leave what comes after it.
func TestSentBehindAnother(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	last = queue(t, store, last, 3000, "remote")
	other := begin(t, db, `DELETE FROM todevice_outbox WHERE position <= $1`, last-1500)
	failure := make(chan error, 1)
	go func() { failure <- store.Sent(t.Context(), "remote", last-1) }()
	waitForWaiter(t, db, "%DELETE FROM todevice_outbox%")
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-failure; err != nil {
		t.Error(err)
	}
	wantLine(t, store, "remote", 1)
}

// A call whose connection is lost half way does not keep its rows from the one that repeats it.
func TestOutboxAfterALostConnection(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	last = queue(t, store, last, 1, "sent", "refused", "accepted")
	refuse := func(destination string) storage.Refusal {
		return storage.Refusal{EDU: storage.EDU{Destination: destination, Position: last, Content: []byte(`{}`)}}
	}
	for _, destination := range []string{"refused", "accepted"} {
		if err := store.Refuse(t.Context(), refuse(destination)); err != nil {
			t.Fatal(err)
		}
	}
	calls := []func(context.Context, storage.Store) error{
		func(ctx context.Context, s storage.Store) error { return s.Sent(ctx, "sent", last) },
		func(ctx context.Context, s storage.Store) error { return s.Refuse(ctx, refuse("refused")) },
		func(ctx context.Context, s storage.Store) error { return s.Accepted(ctx, "accepted", last) },
	}
	network := newProxy(t, url)
	lost := postgres.New(openDB(t, network.url))
	// The server waits within the statement, and carries it out once nobody listens any more.
	obstacle := begin(t, db, `SELECT FROM todevice_outbox FOR UPDATE`)
	if _, err := obstacle.Exec(`SELECT FROM todevice_refused FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	failures := make(chan error, len(calls))
	for _, call := range calls {
		go func() { failures <- call(t.Context(), lost) }()
	}
	for _, statement := range []string{"%DELETE FROM todevice_outbox%", "%INSERT INTO todevice_refused%", "%DELETE FROM todevice_refused%"} {
		waitForWaiter(t, db, statement)
	}
	network.cut()
	for range calls {
		wantTransient(t, <-failures)
	}
	if err := obstacle.Rollback(); err != nil {
		t.Fatal(err)
	}
	waitForSessions(t, db, `state = 'active'`, func(n int) bool { return n == 0 })
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	for _, call := range calls {
		if err := call(ctx, store); err != nil {
			t.Error(err)
		}
	}
	wantLine(t, store, "sent", 0)
}

var actualRows = regexp.MustCompile(`actual .*rows=(\d+)`)

// wantFewRows carries the statement out.
func wantFewRows(t *testing.T, db *sql.DB, most int, statement string, args ...any) {
	t.Helper()
	text := explain(t, db, "EXPLAIN ANALYSE "+statement, args...)
	met := -1
	for _, match := range actualRows.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatal(err)
		}
		met = max(met, n)
	}
	if met < 0 || met > most {
		t.Errorf("the plan of%s\nmeets %d rows, want at most %d:\n%s", statement, met, most, text)
	}
}

// However long a line has become since the planner last counted, a call meets few rows beyond those that
// it returns or deletes.
func TestOutboxMeetsFewRows(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	for range 2 {
		for _, c := range []struct {
			statement string
			args      []any
			most      int
		}{
			{postgres.WaitingStatement, []any{"b", 0, int64(last), 100, 1 << 20}, 101},
			{postgres.WaitingStatement, []any{"b", int64(last) - 2000, int64(last), 100, 20}, 11},
			{postgres.DestinationsStatement, nil, 4},
			{postgres.SentStatement, []any{"b", int64(last) - 2900, 1000}, 100},
			{postgres.LeaveStatement, []any{"b", int64(last) - 2000}, 1},
		} {
			wantFewRows(t, db, c.most, c.statement, c.args...)
		}
		if _, err := db.Exec(`ANALYSE todevice_outbox`); err != nil {
			t.Fatal(err)
		}
		last = queue(t, store, last, 3000, "a", "b", "c")
	}
}
