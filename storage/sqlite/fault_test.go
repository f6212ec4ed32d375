package sqlite_test

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
)

func mustExec(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

func wantFault(t *testing.T, err error) {
	t.Helper()
	if wantTransient(t, err); !errors.Is(err, storage.ErrFault) {
		t.Errorf("got the error %v, want a fault of the database's", err)
	}
}

// What says nothing of the values may be mended: the message must not be dropped for it.
func TestFaultsAreTransient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	db.SetMaxOpenConns(1) // the pragma is the connection's
	store, last := claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	for _, breakAndMend := range [][2]string{
		{`ALTER TABLE todevice_messages RENAME TO elsewhere`, `ALTER TABLE elsewhere RENAME TO todevice_messages`}, // SQLITE_ERROR
		{`PRAGMA query_only = 1`, `PRAGMA query_only = 0`},                                                         // SQLITE_READONLY
	} {
		mustExec(t, db, breakAndMend[0])
		wantFault(t, store.Commit(t.Context(), batch(last, `{}`)))
		mustExec(t, db, breakAndMend[1])
	}
	if err := store.Commit(t.Context(), batch(last, `{}`)); err != nil {
		t.Errorf("once all is mended: %v", err)
	}
}

func TestCorruptIndexIsAFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	store, last := claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	if err := store.Commit(t.Context(), batch(last, `{}`)); err != nil {
		t.Fatal(err)
	}
	var page, size int64
	if err := db.QueryRow(`SELECT rootpage, (SELECT page_size FROM pragma_page_size)
		FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'todevice_messages'`).Scan(&page, &size); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteAt(bytes.Repeat([]byte{0xff}, int(size)), (page-1)*size)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	db = openDB(t, path)
	store = sqlite.New(db, sqlite.NewWriter(db), path)
	wantFault(t, store.Commit(t.Context(), batch(last+1, `{}`)))
	_, err = store.Messages(t.Context(), device, 0, last+1, 1, nil)
	wantFault(t, err)
}

func TestRefusedValuesAreFinal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	db := openDB(t, path)
	store, last := claimed(t, sqlite.New(db, sqlite.NewWriter(db), path))
	mustExec(t, db, `CREATE TABLE numbers (n INTEGER PRIMARY KEY)`)
	for what, action := range map[string]string{
		"too big":    `SELECT zeroblob(2000000000)`,
		"constraint": `SELECT raise(ABORT, 'as told')`,
		"mismatch":   `INSERT INTO numbers VALUES ('none')`,
	} {
		mustExec(t, db, `CREATE TRIGGER refuse BEFORE INSERT ON todevice_messages BEGIN `+action+`; END`)
		if err := store.Commit(t.Context(), batch(last, `{}`)); err == nil || errors.Is(err, storage.ErrTransient) {
			t.Errorf("%s: got the error %v, want a final one", what, err)
		}
		mustExec(t, db, `DROP TRIGGER refuse`)
	}
}
