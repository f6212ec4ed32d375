package e2e

import (
	"database/sql"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// takesNote is what a client may take at the most to note an answer that it has. The server does not run meanwhile.
const takesNote = time.Second

// restored is a backup that is made while the server runs, and takes the place of its database some time later. Clients come back with
// tokens from after it. The streams of NATS stay as they are. No
// device is deleted or signed in meanwhile: a backup brings back the one and forgets the other.
func restored(w *torture, k *keeper, backUp, restore func(t testing.TB)) *fault {
	var from time.Time
	return &fault{
		name: "backup restored", alone: true,
		inject: func(t testing.TB, _ *rand.Rand) {
			w.churning.Lock()
			done := false
			defer func() {
				if !done {
					w.churning.Unlock()
				}
			}()
			from = time.Now()
			backUp(t)
			done = true
		},
		heal: func(t testing.TB) {
			defer w.churning.Unlock()
			orFail(t, k.stop())
			time.Sleep(takesNote)
			restore(t)
			w.journal.Restored(from, time.Now())
			k.up()
		},
	}
}

// restoredSQLite copies the files of a server, those of the host's components included.
func restoredSQLite(t testing.TB, w *torture, k *keeper) *fault {
	backups := t.TempDir()
	files := func(t testing.TB, dir string) []string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, "dendrite_*.db"))
		if err != nil || len(found) == 0 {
			t.Fatalf("files of SQLite in %s: %v, %v", dir, found, err)
		}
		return found
	}
	return restored(w, k,
		func(t testing.TB) {
			for _, file := range files(t, k.s.dir) {
				to := filepath.Join(backups, filepath.Base(file))
				_ = os.Remove(to)
				db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(20000)")
				if err != nil {
					t.Fatal(err)
				}
				_, err = db.ExecContext(t.Context(), "VACUUM INTO $1", to)
				orFail(t, err)
				orFail(t, db.Close())
			}
		},
		func(t testing.TB) {
			for _, backup := range files(t, backups) {
				file := filepath.Join(k.s.dir, filepath.Base(backup))
				for _, suffix := range []string{"-wal", "-shm", "-journal"} {
					_ = os.Remove(file + suffix)
				}
				copyFile(t, backup, file)
			}
		})
}

// restoredPostgres uses PostgreSQL's own programs, as the documents say.
func restoredPostgres(t testing.TB, w *torture, k *keeper, pg *pgtest.Server) *fault {
	backup := filepath.Join(t.TempDir(), "backup")
	return restored(w, k,
		func(t testing.TB) {
			file, err := os.Create(backup)
			if err != nil {
				t.Fatal(err)
			}
			orFail(t, pg.Tool(nil, file, "pg_dump", "--format=custom", "--compress=0", "--dbname="+pg.URL))
			orFail(t, file.Close())
		},
		func(t testing.TB) {
			u, err := url.Parse(pg.URL)
			if err != nil {
				t.Fatal(err)
			}
			name := u.Path[1:]
			u.Path = "/template1"
			db, err := sql.Open("postgres", u.String())
			if err != nil {
				t.Fatal(err)
			}
			for _, statement := range []string{"DROP DATABASE " + name + " WITH (FORCE)", "CREATE DATABASE " + name + " TEMPLATE template0"} {
				_, err = db.ExecContext(t.Context(), statement)
				orFail(t, err)
			}
			orFail(t, db.Close())
			file, err := os.Open(backup)
			if err != nil {
				t.Fatal(err)
			}
			orFail(t, pg.Tool(file, nil, "pg_restore", "--single-transaction", "--dbname="+pg.URL))
			orFail(t, file.Close())
		})
}
