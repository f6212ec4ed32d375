package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
	"github.com/matrix-org/dendrite/todevicemodule/storage/storagetest"
)

func TestStore(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storagetest.Opener {
		path := filepath.Join(t.TempDir(), "dendrite.db")
		return func(t testing.TB) storage.Store {
			db := openDB(t, path)
			return sqlite.New(db, sqlite.NewWriter(db), path)
		}
	})
}

func openDB(t testing.TB, path string) *sql.DB {
	t.Helper()
	return open(t, path+driverOptions)
}

// openImpatient opens a database whose connections do not wait for others.
func openImpatient(t testing.TB, path string) *sql.DB {
	t.Helper()
	return open(t, path+impatientOptions)
}

func open(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func BenchmarkStore(b *testing.B) {
	path := filepath.Join(b.TempDir(), "dendrite.db")
	storagetest.Benchmark(b, func(t testing.TB) storage.Store {
		db := openDB(t, path)
		return sqlite.New(db, sqlite.NewWriter(db), path)
	})
}
