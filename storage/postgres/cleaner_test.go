package postgres_test

import (
	"database/sql"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstoretest"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
)

func fill(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

// The lists meet as many rows as there are users and devices, and the end of a queue is found from its newest
// message, however long the queues are.
func TestCleanerMeetsFewRows(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	newStore(t, url)
	// First the planner knows empty tables.
	fill(t, db, `ANALYSE`,
		`INSERT INTO todevice_messages SELECT '@u' || n % 30 || ':x', n / 30 % 3, n, '@bob:x', 'm.a', '{}' FROM generate_series(1, 9000) n`,
		`INSERT INTO todevice_transactions SELECT '@u' || n % 30 || ':x', n / 30 % 3, 'm.a', n::text, n FROM generate_series(1, 9000) n`)
	for range 2 {
		wantFewRows(t, db, 32, postgres.UsersStatement, "", 1000)
		wantFewRows(t, db, 6, postgres.UsersStatement, "@u10:x", 3)
		wantFewRows(t, db, 4, postgres.UsersStatement, "", 2)
		wantFewRows(t, db, 6, postgres.DevicesStatement, "@u7:x")
		wantFewRows(t, db, 1, postgres.RecordedStatement, "@u7:x", "1")
		wantFewRows(t, db, 12, postgres.ExcessStatement, "@u7:x", "1", 10, 0)
		wantFewRows(t, db, 12, postgres.ExcessStatement, "@u7:x", "1", 0, 20)
		wantFewRows(t, db, 12, postgres.ExcessStatement, "@u7:x", "1", 1<<40, 20)
		wantIndex(t, db, "Index Only Scan using todevice_messages_pkey", postgres.UsersStatement, "", 100)
		wantIndex(t, db, "Index Only Scan using todevice_transactions_pkey", postgres.UsersStatement, "", 100)
		wantIndex(t, db, "Index Only Scan using todevice_messages_pkey", postgres.DevicesStatement, "@u7:x")
		wantIndex(t, db, "Index Only Scan using todevice_transactions_pkey", postgres.DevicesStatement, "@u7:x")
		wantIndex(t, db, "todevice_transactions_pkey", postgres.RecordedStatement, "@u7:x", "1")
		wantIndex(t, db, "todevice_transactions_pkey", postgres.ForgetDeviceStatement, "@u7:x", "1", 1000)
		wantIndex(t, db, "todevice_messages_pkey", postgres.ExcessStatement, "@u7:x", "1", 10, 20)
		fill(t, db, `ANALYSE`)
	}
}

// No transaction number is used up, so the log is not flushed.
func TestCleaningNothingWritesNothing(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	queue(t, store, last, 1, "remote")
	nextTransaction := func() (next int64) {
		if err := db.QueryRow(`SELECT txid_snapshot_xmax(txid_current_snapshot())`).Scan(&next); err != nil {
			t.Fatal(err)
		}
		return next
	}
	// The server may start a few of its own in between.
	const rounds = 100
	before := nextTransaction()
	for range rounds {
		if purged, err := store.Purge(t.Context(), device, 1<<60); err != nil || purged != 0 {
			t.Fatal(purged, err)
		}
		if err := store.Forget(t.Context(), device); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Discard(t.Context(), "remote", 0); err != nil {
			t.Fatal(err)
		}
	}
	if used := nextTransaction() - before; used >= rounds {
		t.Errorf("%d rounds took %d transaction numbers, each a flush of the log", rounds, used)
	}
}

var buffers = regexp.MustCompile(`shared (?:hit=(\d+))?(?: ?read=(\d+))?`)

// wantFewPages carries the statement out. The first line of the plan with buffers counts all of them.
func wantFewPages(t *testing.T, db *sql.DB, most int, statement string, args ...any) {
	t.Helper()
	text := explain(t, db, "EXPLAIN (ANALYSE, BUFFERS) "+statement, args...)
	match := buffers.FindStringSubmatch(text)
	if match == nil {
		t.Fatalf("the plan tells of no pages:\n%s", text)
	}
	met := 0
	for _, count := range match[1:] {
		n, _ := strconv.Atoi(count) // a part that is not there is 0
		met += n
	}
	if met > most {
		t.Errorf("%s\nmeets %d pages, want at most %d:\n%s", statement, met, most, text)
	}
}

// The sizes of contents are known without reading them: here they fill thousands of pages.
func TestSizesOfLargeContents(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, _ := newStore(t, url)
	fill(t, db, `
		INSERT INTO todevice_messages
		SELECT '@alice:x', 'A', n, '@bob:x', 'm.a', (SELECT string_agg(md5((n * 50000 + i)::text), '') FROM generate_series(1, 30000) i)
		FROM generate_series(1, 20) n`, `ANALYSE`)
	wantFewPages(t, db, 300, postgres.ExcessStatement, "@alice:x", "A", 0, 1<<40)
	wantFewPages(t, db, 300, postgres.QueuesBySizeStatement, 1<<40, "", "", 10)
	wantFewPages(t, db, 300, postgres.QueuesByAgeStatement, 0, "", "", 10)
	wantFewPages(t, db, 50, postgres.TotalsStatement)
	want := storage.Queue{Device: device, Messages: 20, Bytes: 20 * 30000 * 32, Oldest: 1, Newest: 20}
	queues, err := store.Queues(t.Context(), storage.BySize, nil, 10)
	if err != nil || len(queues) != 1 || queues[0] != want {
		t.Errorf("the queues are %+v (%v), want %+v", queues, err, want)
	}
}

// Where VACUUM has been, the queues are counted in the index, and the contents beside it stay out of it.
func TestQueuesAreCountedInTheIndex(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	newStore(t, url)
	fill(t, db, `INSERT INTO todevice_messages
		SELECT '@' || n % 100, 'A', n, '@bob:x', 'm.a', repeat('x', 800) FROM generate_series(1, 10000) n`,
		`VACUUM (ANALYSE) todevice_messages`)
	for statement, args := range map[string][]any{
		postgres.TotalsStatement:       nil,
		postgres.QueuesBySizeStatement: {1 << 40, "", "", 10},
		postgres.QueuesByAgeStatement:  {0, "", "", 10},
		postgres.CountsBySizeStatement: {1 << 40, "", "", 10},
		postgres.CountsByAgeStatement:  {0, "", "", 10},
	} {
		text := explain(t, db, "EXPLAIN "+statement, args...)
		if !strings.Contains(text, "Index Only Scan using todevice_messages_pkey") || strings.Contains(text, "Seq Scan on todevice_messages") {
			t.Errorf("the plan of%s\nis\n%s", statement, text)
		}
	}
}

// Each of them is a look at one destination.
func TestLinePlans(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	newStore(t, url)
	fill(t, db,
		`INSERT INTO todevice_outbox (destination, position, origin, message_id, content)
			SELECT n % 1000, n, 'x', 'id', '{}' FROM generate_series(1, 20000) n`,
		`INSERT INTO todevice_refused (destination, position, origin, message_id, content, attempts, retry_at, answer)
			SELECT n % 1000, n, 'x', 'id', '{}', 1, CASE WHEN n % 3 > 0 THEN n END, '' FROM generate_series(1, 20000) n`)
	for range 2 {
		wantFewRows(t, db, 20, postgres.LineStatement, "7")
		wantFewRows(t, db, 20, postgres.LinesStatement, "7", 5)
		wantFewRows(t, db, 20, postgres.AsideStatement, "7", 0, 20)
		for _, index := range []string{"todevice_outbox_pkey", "todevice_refused_pkey"} {
			wantIndex(t, db, index, postgres.LineStatement, "7")
			wantIndex(t, db, index, postgres.LinesStatement, "", 100)
		}
		wantIndex(t, db, "todevice_refused_pkey", postgres.AsideStatement, "7", 0, 100)
		wantIndex(t, db, "todevice_refused_pkey", postgres.ReadmitStatement, "7", 0, 1000, 5)
		wantIndex(t, db, "todevice_refused_pkey", postgres.DiscardStatement, "7", 0, 1000)
		fill(t, db, `ANALYSE`)
	}
}

func TestChangesOfWhatStandsAsideAreCutOff(t *testing.T) {
	db := openDB(t, pgtest.NewSchema(t))
	sqlstoretest.CutOff(t, db, postgres.New(db),
		`CREATE FUNCTION faulty() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'faulty'; END $$`,
		`CREATE TRIGGER faulty BEFORE UPDATE OR DELETE ON todevice_refused FOR EACH ROW WHEN (OLD.message_id = 'faulty') EXECUTE FUNCTION faulty()`,
	)
}
