package postgres_test

import (
	"database/sql"
	"regexp"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
)

// Whether the planner knows the tables or not: no statement may scan or sort more than it returns.
func TestPlans(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	newStore(t, url)
	for _, statement := range []string{
		// One device has half of all messages, and a thousand devices share the other half.
		`INSERT INTO todevice_messages SELECT '@alice:x', 'A', n, '@bob:x', 'm.a', '{}' FROM generate_series(1, 20000) n`,
		`INSERT INTO todevice_messages SELECT '@' || n % 1000, 'A', n, '@bob:x', 'm.a', '{}' FROM generate_series(1, 20000) n`,
		`INSERT INTO todevice_transactions SELECT '@' || n % 1000, 'A', 'm.a', n::text, n FROM generate_series(1, 20000) n`,
		// So with the destinations.
		`INSERT INTO todevice_outbox (destination, position, origin, message_id, content)
			SELECT 'big', n, 'x', 'id', '{}' FROM generate_series(1, 20000) n`,
		`INSERT INTO todevice_outbox (destination, position, origin, message_id, content)
			SELECT n % 1000, n, 'x', 'id', '{}' FROM generate_series(1, 20000) n`,
		`INSERT INTO todevice_refused (destination, position, origin, message_id, content, attempts, retry_at, answer)
			SELECT n % 1000, n, 'x', 'id', '{}', 1, CASE WHEN n % 3 > 0 THEN n END, '' FROM generate_series(1, 20000) n`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	for _, known := range []bool{false, true} {
		if known {
			if _, err := db.Exec(`ANALYSE`); err != nil {
				t.Fatal(err)
			}
		}
		wantPlan(t, db, "todevice_messages_pkey", postgres.MessagesStatement, "@alice:x", "A", 5, 19000, 100)
		wantPlan(t, db, "todevice_messages_pkey", postgres.MessagesStatement, "@7", "A", 0, 19000, 100)
		wantPlan(t, db, "todevice_messages_pkey", postgres.MessagesExceptStatement, "@alice:x", "A", 5, 19000, 100, pq.Array([]string{"@eve:x"}))
		users, devices := make([]string, 500), make([]string, 500)
		throughs := make([]int64, 500)
		for i := range users {
			users[i], devices[i], throughs[i] = "@alice:x", "A", 1000
		}
		wantPlan(t, db, "todevice_messages_pkey", postgres.AcknowledgeStatement, pq.Array(users), pq.Array(devices), pq.Array(throughs), 1000)
		wantPlan(t, db, "todevice_messages_pkey", postgres.AcknowledgeStatement, pq.Array(users[:1]), pq.Array(devices[:1]), pq.Array(throughs[:1]), 1000)
		wantPlan(t, db, "todevice_transactions_pkey", postgres.StoredStatement, pq.Array(users), pq.Array(devices), pq.Array(users), pq.Array(devices))
		wantPlan(t, db, "todevice_transactions_expires_at", postgres.ForgetStatement, 5000, 1000)
		// These sort only what they return or delete; how much that is, TestOutboxMeetsFewRows tells.
		for _, destination := range []string{"big", "7", "unknown"} {
			wantIndex(t, db, "todevice_outbox_pkey", postgres.WaitingStatement, destination, 0, 1<<40, 100, 1<<20)
			wantIndex(t, db, "todevice_outbox_pkey", postgres.WaitingStatement, destination, 5, 19000, 100, 1<<20)
			wantIndex(t, db, "todevice_outbox_pkey", postgres.SentStatement, destination, 100, 1000)
			wantIndex(t, db, "todevice_outbox_pkey", postgres.SentStatement, destination, 1<<40, 1000)
			wantIndex(t, db, "todevice_outbox_pkey", postgres.LeaveStatement, destination, 100)
			wantIndex(t, db, "todevice_refused_retry_at", postgres.RefusedStatement, destination, 1<<40, 100)
			wantIndex(t, db, "todevice_refused_pkey", postgres.AcceptedStatement, destination, 100)
		}
		wantIndex(t, db, "todevice_outbox_pkey", postgres.DestinationsStatement)
		wantIndex(t, db, "todevice_refused_retry_at", postgres.DestinationsStatement)
	}
}

// A plan that is kept must not scan a table that may grow: the statement that is prepared looks nothing up.
func TestPreparedPlan(t *testing.T) {
	url := pgtest.NewSchema(t)
	newStore(t, url)
	db := openDB(t, url+"&plan_cache_mode=force_generic_plan")
	db.SetMaxOpenConns(1)
	for _, statement := range []string{`PREPARE a_commit AS ` + postgres.CommitStatement(), `VACUUM ANALYSE`} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	plan := explain(t, db, `EXPLAIN EXECUTE a_commit (1, 'writer', 0`+strings.Repeat(", NULL", 16)+`)`)
	if regexp.MustCompile(`Scan (using \w+ )?on todevice_[^p]`).MatchString(plan) || !strings.Contains(plan, "Insert on todevice_outbox") {
		t.Errorf("the plan is\n%s", plan)
	}
}

func wantPlan(t *testing.T, db *sql.DB, index, statement string, args ...any) {
	t.Helper()
	for line := range strings.Lines(wantIndex(t, db, index, statement, args...)) {
		// What the acknowledgement groups is what it picked.
		if strings.Contains(line, "Sort") && !strings.Contains(line, "picked.ordinal") && strings.Contains(line, "position") {
			t.Errorf("the plan sorts messages: %s", line)
		}
	}
}

// wantIndex returns the plan.
func wantIndex(t *testing.T, db *sql.DB, index, statement string, args ...any) string {
	t.Helper()
	text := explain(t, db, "EXPLAIN "+statement, args...)
	if !strings.Contains(text, index) || strings.Contains(text, "Seq Scan") || strings.Contains(text, "Hash Join") || strings.Contains(text, "Merge Join") {
		t.Errorf("the plan of%s\nis\n%s", statement, text)
	}
	return text
}

func explain(t *testing.T, db *sql.DB, statement string, args ...any) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck
	var plan strings.Builder
	for rows.Next() {
		var line string
		if err = rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(line + "\n")
	}
	if err = rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}

func TestIdleAcknowledgeWritesNothing(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, _ := newStore(t, url)
	nextTransaction := func() (next int64) {
		if err := db.QueryRow(`SELECT txid_snapshot_xmax(txid_current_snapshot())`).Scan(&next); err != nil {
			t.Fatal(err)
		}
		return next
	}
	// The server may start a few of its own in between.
	const calls = 100
	before := nextTransaction()
	for range calls {
		if _, err := store.Acknowledge(t.Context(), []storage.Acknowledgement{{Device: device, Through: 100}}, 10); err != nil {
			t.Fatal(err)
		}
	}
	if used := nextTransaction() - before; used >= calls {
		t.Errorf("%d idle acknowledgements took %d transaction numbers, each a flush of the log", calls, used)
	}
}
