package postgres_test

import (
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// whileRaising has the database answer every insertion of a message with an SQLSTATE.
func whileRaising(t *testing.T, db *sql.DB, state string, f func()) {
	t.Helper()
	for _, statement := range []string{
		fmt.Sprintf(`CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '%s'; END $$`, state),
		`CREATE TRIGGER fail BEFORE INSERT ON todevice_messages FOR EACH ROW EXECUTE FUNCTION fail()`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	f()
	if _, err := db.Exec(`DROP TRIGGER fail ON todevice_messages; DROP FUNCTION fail`); err != nil {
		t.Fatal(err)
	}
}

// What says nothing of the values may be mended: the message must not be dropped for it.
func TestFaultsAreTransient(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	for what, state := range map[string]string{
		"a corrupt index":                                "XX002",
		"a bug of the server's":                          "XX000",
		"transaction numbers that are used up":           "54000",
		"a missing table":                                "42P01",
		"no right":                                       "42501",
		"a plan that does not fit any more":              "0A000",
		"a statement that was not prepared":              "26000",
		"a database that is no more":                     "3D000",
		"a pooler that has no connection":                "08P01",
		"an extension's fault, under a class of its own": "P0001",
	} {
		whileRaising(t, db, state, func() {
			err := store.Commit(t.Context(), batch(last))
			if wantTransient(t, err); errors.Is(err, storage.ErrFault) == (state == "08P01") {
				t.Errorf("%s: a fault of the database's, or one that is away? %v", what, err)
			}
		})
	}
	if _, err := db.Exec(`ALTER TABLE todevice_messages RENAME TO elsewhere`); err != nil {
		t.Fatal(err)
	}
	wantTransient(t, store.Commit(t.Context(), batch(last)))
	_, err := store.Messages(t.Context(), device, 0, last, 1, nil)
	wantTransient(t, err)
	if _, err = db.Exec(`ALTER TABLE elsewhere RENAME TO todevice_messages`); err != nil {
		t.Fatal(err)
	}
	if err = store.Commit(t.Context(), batch(last)); err != nil {
		t.Errorf("once all is mended: %v", err)
	}
}

func TestRefusedValuesAreFinal(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	store, last := newStore(t, url)
	for _, state := range []string{"21000", "22021", "22P05", "22001", "23505", "23514"} {
		whileRaising(t, db, state, func() {
			if err := store.Commit(t.Context(), batch(last)); err == nil || errors.Is(err, storage.ErrTransient) {
				t.Errorf("%s: got the error %v, want a final one", state, err)
			}
		})
	}
}

// A key too long for an index is answered as a server is that has used up its transaction numbers. MaxKeyBytes keeps it out.
func TestKeyThatIsTooLongForAnIndex(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	newStore(t, url)
	_, err := db.Exec(`INSERT INTO todevice_messages
		SELECT string_agg(md5(n::text), ''), 'A', 1, '@bob:x', 'm.a', '{}' FROM generate_series(1, 200) n`)
	var fromServer *pq.Error
	if !errors.As(err, &fromServer) || fromServer.SQLState() != "54000" {
		t.Errorf("a key of 6,400 bytes gives %v", err)
	}
}
