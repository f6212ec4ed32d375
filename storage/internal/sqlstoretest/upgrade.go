// Package sqlstoretest tests what an SQL database has beyond the contract.
package sqlstoretest

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var device = types.Device{UserID: "@alice:example.org", DeviceID: "PHONE"}

// Upgrade migrates an empty database from each version to the last and back.
func Upgrade(t *testing.T, db *sql.DB, dialect goose.Dialect, files fs.FS, store storage.Store) {
	provider, err := sqlstore.NewProvider(db, dialect, files, nil)
	must(t, err)
	ctx := t.Context()
	_, err = provider.UpTo(ctx, 1)
	must(t, err)
	// The Unix times are in microseconds.
	storedAt := time.Now().Add(-23 * time.Hour)
	exec(t, db, `INSERT INTO todevice_transactions VALUES ('@alice:example.org', 'PHONE', 'm.a', 'old', %d)`, storedAt.UnixMicro())
	exec(t, db, `INSERT INTO todevice_messages VALUES ('@alice:example.org', 'PHONE', 7, '@bob:example.org', 'm.a', '{}')`)
	exec(t, db, `UPDATE todevice_position SET writer = 'old', last = 7`)

	must(t, store.Migrate(ctx))
	state, err := store.State(ctx)
	must(t, err)
	if state != (storage.State{Writer: "old", Last: 7}) {
		t.Errorf("the state is %+v", state)
	}
	wantMessage(ctx, t, store)
	forget(ctx, t, store, storedAt.Add(48*time.Hour), 0)
	wantStored(ctx, t, store, "old", true)

	last, err := store.Claim(ctx, "new", 0)
	must(t, err)
	expiresAt := storedAt.Add(90 * 24 * time.Hour)
	must(t, store.Commit(ctx, storage.Batch{
		Writer: "new", Previous: last, Last: last + 1,
		EDUs:         []storage.EDU{{Destination: "remote", Position: last + 1, Content: []byte(`{}`)}},
		Transactions: []storage.Transaction{{TransactionKey: key("new"), ExpiresAt: expiresAt}},
	}))

	_, err = provider.DownTo(ctx, 1)
	must(t, err)
	var stored int64
	must(t, db.QueryRowContext(ctx, `SELECT stored_at FROM todevice_transactions WHERE transaction_id = 'old'`).Scan(&stored))
	if stored != storedAt.UnixMicro() {
		t.Errorf("the record was stored at %d, want %d", stored, storedAt.UnixMicro())
	}
	must(t, store.Migrate(ctx))
	wantMessage(ctx, t, store)
	if edus, err := store.Waiting(ctx, "remote", 0, last+1, 1, 1); err != nil || len(edus) != 0 {
		t.Errorf("the version before knows of %d EDUs (%v)", len(edus), err)
	}
	forget(ctx, t, store, expiresAt, 1)
	wantStored(ctx, t, store, "old", false)
	wantStored(ctx, t, store, "new", true)
	forget(ctx, t, store, expiresAt.Add(time.Second), 1)

	_, err = provider.DownTo(ctx, 0)
	must(t, err)
	must(t, store.Migrate(ctx))
	if state, err = store.State(ctx); err != nil || state != (storage.State{}) {
		t.Errorf("the state is %+v (%v)", state, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t *testing.T, db *sql.DB, format string, args ...any) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), fmt.Sprintf(format, args...))
	must(t, err)
}

func key(transactionID string) types.TransactionKey {
	return types.TransactionKey{Device: device, EventType: "m.a", TransactionID: transactionID}
}

func wantMessage(ctx context.Context, t *testing.T, store storage.Store) {
	t.Helper()
	messages, err := store.Messages(ctx, device, 0, 7, 10, nil)
	must(t, err)
	if len(messages) != 1 || messages[0].Position != 7 {
		t.Errorf("the queue is %+v", messages)
	}
}

func wantStored(ctx context.Context, t *testing.T, store storage.Store, transactionID string, want bool) {
	t.Helper()
	stored, err := store.Stored(ctx, []types.TransactionKey{key(transactionID)})
	must(t, err)
	if _, got := stored[key(transactionID)]; got != want {
		t.Errorf("transaction %q is there: %v", transactionID, got)
	}
}

func forget(ctx context.Context, t *testing.T, store storage.Store, before time.Time, want int) {
	t.Helper()
	forgotten, err := store.ForgetTransactions(ctx, before, 10)
	must(t, err)
	if forgotten != want {
		t.Errorf("%d transactions were forgotten, want %d", forgotten, want)
	}
}
