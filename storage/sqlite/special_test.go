package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/pressly/goose/v3"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstoretest"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
	"github.com/matrix-org/dendrite/todevicemodule/storage/storagetest"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const writer = "first"

var device = types.Device{UserID: "@alice:x", DeviceID: "A"}

func claimed(t *testing.T, store storage.Store) (storage.Store, types.Position) {
	t.Helper()
	if err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, err := store.Claim(t.Context(), writer, 1)
	if err != nil {
		t.Fatal(err)
	}
	return store, last
}

func batch(previous types.Position, content string) storage.Batch {
	return storage.Batch{
		Writer: writer, Previous: previous, Last: previous + 1,
		Deliveries: []storage.Delivery{{
			Position: previous + 1, Sender: "@bob:x", Type: "m.a",
			Copies: []storage.Copy{{Device: device, Content: []byte(content)}},
		}},
	}
}

func wantTransient(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, storage.ErrTransient) {
		t.Errorf("got the error %v, want a transient one", err)
	}
}

// countingWriter counts how often a store asks to write.
type countingWriter struct {
	sqlite.Writer
	transactions int
}

func (w *countingWriter) Transact(f func(*sql.Tx) error) error {
	w.transactions++
	return w.Writer.Transact(f)
}

func TestIdleAcknowledgeDoesNotWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	counter := &countingWriter{Writer: sqlite.NewWriter(db)}
	store, last := claimed(t, sqlite.New(db, counter, path))
	if err := store.Commit(t.Context(), batch(last, `{}`)); err != nil {
		t.Fatal(err)
	}
	for through, writes := range map[types.Position]int{last: 0, last + 1: 1} {
		counter.transactions = 0
		if _, err := store.Acknowledge(t.Context(), []storage.Acknowledgement{{Device: device, Through: through}}, 10); err != nil {
			t.Fatal(err)
		}
		if counter.transactions != writes {
			t.Errorf("through %d: %d transactions, want %d", through, counter.transactions, writes)
		}
	}
}

func TestInMemory(t *testing.T) {
	db := openDB(t, ":memory:")
	db.SetMaxOpenConns(1) // each connection would have a database of its own
	store, last := claimed(t, sqlite.New(db, sqlite.NewWriter(db), ""))
	lock, err := store.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err = store.Commit(t.Context(), batch(last, `{}`)); err != nil {
		t.Fatal(err)
	}
	messages, err := store.Messages(t.Context(), device, 0, last+1, 10, []string{"@eve:x"})
	if err != nil || len(messages) != 1 {
		t.Errorf("got %d messages and the error %v", len(messages), err)
	}
	if _, err = store.Acknowledge(t.Context(), []storage.Acknowledgement{{Device: device, Through: last + 1}}, 10); err != nil {
		t.Error(err)
	}
	if err = errors.Join(lock.Check(t.Context()), lock.Release()); err != nil {
		t.Error(err)
	}
}

func TestBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	_, last := claimed(t, sqlite.New(openDB(t, path), sqlite.NewWriter(openDB(t, path)), path))
	db := openImpatient(t, path)
	impatient := sqlite.New(db, sqlite.NewWriter(db), path)

	other, err := openDB(t, path).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close() //nolint:errcheck
	if _, err = other.ExecContext(t.Context(), "BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	wantTransient(t, impatient.Commit(t.Context(), batch(last, `{}`)))
	_, err = impatient.State(t.Context())
	wantTransient(t, err)
	_, err = impatient.Messages(t.Context(), device, 0, last, 1, nil)
	wantTransient(t, err)
	_, err = impatient.Acknowledge(t.Context(), []storage.Acknowledgement{{Device: device, Through: last}}, 1)
	wantTransient(t, err)
	for _, err := range storagetest.Errors(t.Context(), impatient) {
		wantTransient(t, err)
	}
	if _, err = other.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err = impatient.Commit(t.Context(), batch(last, `{}`)); err != nil {
		t.Error(err)
	}
}

// A reader keeps COMMIT itself from the file: the transaction is rolled back, and the connection
// stays good.
func TestBusyAtCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openImpatient(t, path)
	db.SetMaxOpenConns(1)
	store, last := claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	reader, err := openDB(t, path).Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback() //nolint:errcheck
	var one int
	if err = reader.QueryRow(`SELECT id FROM todevice_position`).Scan(&one); err != nil {
		t.Fatal(err)
	}
	wantTransient(t, store.Commit(t.Context(), batch(last, `{}`)))
	if err = reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	state, err := store.State(t.Context())
	if want := (storage.State{Writer: writer, Last: last}); err != nil || state != want {
		t.Errorf("the state is %+v (%v), want %+v", state, err, want)
	}
	if err = store.Commit(t.Context(), batch(last, `{}`)); err != nil {
		t.Error(err)
	}
}

func TestDiskFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	db.SetMaxOpenConns(1) // the limit is the connection's
	store, last := claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	if _, err := db.Exec(`PRAGMA max_page_count = 40`); err != nil {
		t.Fatal(err)
	}
	wantTransient(t, store.Commit(t.Context(), batch(last, `{"c":"`+strings.Repeat("x", 1<<20)+`"}`)))
	if err := store.Commit(t.Context(), batch(last, `{}`)); err != nil {
		t.Error(err)
	}
}

func TestCannotOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "dendrite.db")
	db := openDB(t, path)
	store := sqlite.New(db, sqlite.NewWriter(db), path)
	_, err := store.State(t.Context())
	wantTransient(t, err)
	if err := store.Migrate(t.Context()); err == nil {
		t.Error("migrated a database that can't be opened")
	}
	if _, err := store.Lock(t.Context()); err == nil {
		t.Error("locked a database that can't be opened")
	}
}

// The writer's turn may come after the caller has gone.
func TestCancelledWhileQueued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	exclusive := sqlite.NewWriter(db)
	store, last := claimed(t, sqlite.New(db, exclusive, path))
	ctx, cancel := context.WithCancel(t.Context())
	failure := make(chan error, 1)
	err := exclusive.Exclude(func() error {
		go func() { failure <- store.Commit(ctx, batch(last, `{}`)) }()
		cancel()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err = <-failure; !errors.Is(err, context.Canceled) {
		t.Errorf("got the error %v", err)
	}
	if state, err := store.State(t.Context()); err != nil || state.Last != last {
		t.Errorf("the state is %+v (%v)", state, err)
	}
}

func TestUpgrade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	sqlstoretest.Upgrade(t, db, goose.DialectSQLite3, sqlite.Migrations, sqlite.New(db, sqlite.NewWriter(db), path))
}

func TestMigrateWaitsForAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	store := sqlite.New(db, sqlite.NewWriter(db), path)
	other := flock.New(path + ".todevice.migrate.lock")
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := store.Migrate(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got the error %v beside another migration", err)
	}
	if err := other.Unlock(); err != nil {
		t.Fatal(err)
	}
	claimed(t, store)
	if _, err := db.Exec(`INSERT INTO todevice_position VALUES (2, 'x', 5)`); err == nil {
		t.Error("a second position record was accepted")
	}
}

func TestLockFollowsLinks(t *testing.T) {
	directory := t.TempDir()
	path, link := filepath.Join(directory, "dendrite.db"), filepath.Join(directory, "link.db")
	db := openDB(t, path)
	claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	lock, err := sqlite.New(db, sqlite.NewWriter(db), path).Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = sqlite.New(db, sqlite.NewWriter(db), link).Lock(t.Context()); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("got the error %v, want ErrLocked", err)
	}
	if err = lock.Release(); err != nil {
		t.Error(err)
	}
}

func TestLockFileRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	first, second := sqlite.New(db, sqlite.NewWriter(db), path), sqlite.New(db, sqlite.NewWriter(db), path)
	lock, err := first.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	remove := func() {
		if err := os.Remove(path + ".todevice.lock"); err != nil {
			t.Fatal(err)
		}
	}
	remove()
	if err = lock.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err = second.Lock(t.Context()); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("got the error %v, want ErrLocked", err)
	}
	remove()
	theirs, err := second.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err = lock.Check(t.Context()); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("got the error %v, want ErrLocked", err)
	}
	if err = errors.Join(lock.Release(), theirs.Check(t.Context()), theirs.Release()); err != nil {
		t.Error(err)
	}
}

func TestPlans(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	for statement, args := range map[string][]any{
		sqlite.MessagesStatement:       {"@alice:x", "A", 1, 2, 3},
		sqlite.MessagesExceptStatement: {"@alice:x", "A", 1, 2, 3, `["@bob:x"]`},
		sqlite.AcknowledgeStatement:    {"@alice:x", "A", 1, 2},
		sqlite.CoveredStatement:        {`[]`},
		sqlite.StoredStatement:         {`[]`},
		sqlite.ForgetStatement:         {time.Now().UnixMicro(), 10},
		sqlite.DestinationsStatement:   {},
		sqlite.WaitingStatement:        {"remote", 1, 2, 3, 4},
		sqlite.SentStatement:           {"remote", 1, 2},
		sqlite.LeaveStatement:          {"remote", 1},
		sqlite.RefusedStatement:        {"remote", 1, 2},
		sqlite.AcceptedStatement:       {"remote", 1},
		sqlite.UsersStatement:          {"@alice:x", 1},
		sqlite.DevicesStatement:        {"@alice:x"},
		sqlite.RecordedStatement:       {"@alice:x", "A"},
		sqlite.ForgetDeviceStatement:   {"@alice:x", "A", 1},
		sqlite.ExcessStatement:         {"@alice:x", "A", 1, 2},
		sqlite.EnvelopesStatement:      {"@alice:x", "A", 1, 2},
		sqlite.LinesStatement:          {"remote", 1},
		sqlite.LineStatement:           {"remote"},
		sqlite.AsideStatement:          {"remote", 1, 2},
		sqlite.ReadmitStatement:        {"remote", 1, 2, 3},
		sqlite.DiscardStatement:        {"remote", 1, 2},
	} {
		text := plan(t, db, statement, args)
		// An index is of use from its first column on alone.
		for _, scan := range []string{"SCAN todevice", "SCAN m", "SCAN t", "SCAN o", "(position", "(retry_at"} {
			if strings.Contains(text, scan) {
				t.Errorf("the plan of%s\nis\n%s", statement, text)
			}
		}
		if !slices.Contains(sortsPicked, statement) && strings.Contains(text, "TEMP B-TREE") {
			t.Errorf("the plan of%s\nis\n%s", statement, text)
		}
	}
}

// sortsPicked are those that sort what they picked.
var sortsPicked = []string{
	sqlite.CoveredStatement, sqlite.DestinationsStatement, sqlite.UsersStatement, sqlite.DevicesStatement, sqlite.ExcessStatement,
	sqlite.LinesStatement,
}

func plan(t *testing.T, db *sql.DB, statement string, args []any) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+statement, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck
	var text strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var line string
		if err = rows.Scan(&id, &parent, &unused, &line); err != nil {
			t.Fatal(err)
		}
		text.WriteString(line + "\n")
	}
	if err = rows.Err(); err != nil {
		t.Fatal(err)
	}
	return text.String()
}
