package postgres_test

import (
	"database/sql"
	"os"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/storage/storagetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestStore(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storagetest.Opener {
		url := pgtest.NewSchema(t)
		return func(t testing.TB) storage.Store { return postgres.New(openDB(t, url)) }
	})
}

func openDB(t testing.TB, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", url)
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
	url := pgtest.NewSchema(b)
	storagetest.Benchmark(b, func(t testing.TB) storage.Store { return postgres.New(openDB(t, url)) })
}
