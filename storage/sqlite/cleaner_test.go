package sqlite_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstoretest"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Only who finds something to change asks for the writer's turn.
func TestCleaningNothingDoesNotWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	counter := &countingWriter{Writer: sqlite.NewWriter(db)}
	store, last := claimed(t, sqlite.New(db, counter, path))
	b := batch(last, `{}`)
	b.Transactions = []storage.Transaction{{TransactionKey: types.TransactionKey{Device: device}}}
	if err := store.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := store.Refuse(t.Context(), storage.Refusal{EDU: storage.EDU{Destination: "remote", Position: 5, Content: []byte(`{}`)}}); err != nil {
		t.Fatal(err)
	}
	other := types.Device{UserID: device.UserID, DeviceID: "B"}
	for name, c := range map[string]struct {
		writes int
		call   func() error
	}{
		"purge nothing":   {0, func() error { _, err := store.Purge(t.Context(), device, last); return err }},
		"purge":           {1, func() error { _, err := store.Purge(t.Context(), device, last+1); return err }},
		"forget nothing":  {0, func() error { return store.Forget(t.Context(), other) }},
		"forget":          {1, func() error { return store.Forget(t.Context(), device) }},
		"readmit nothing": {0, func() error { _, err := store.Readmit(t.Context(), "other", 0, time.Now()); return err }},
		"discard nothing": {0, func() error { _, err := store.Discard(t.Context(), "remote", 4); return err }},
		"discard":         {1, func() error { _, err := store.Discard(t.Context(), "remote", 5); return err }},
	} {
		counter.transactions = 0
		if err := c.call(); err != nil {
			t.Fatal(err)
		}
		if counter.transactions != c.writes {
			t.Errorf("%s: %d transactions, want %d", name, counter.transactions, c.writes)
		}
	}
}

func TestChangesOfWhatStandsAsideAreCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	sqlstoretest.CutOff(t, db, sqlite.New(db, sqlite.NewWriter(db), path),
		`CREATE TRIGGER faulty_update BEFORE UPDATE ON todevice_refused WHEN OLD.message_id = 'faulty' BEGIN SELECT RAISE(FAIL, 'faulty'); END`,
		`CREATE TRIGGER faulty_delete BEFORE DELETE ON todevice_refused WHEN OLD.message_id = 'faulty' BEGIN SELECT RAISE(FAIL, 'faulty'); END`,
	)
}
