// Package testdb runs a test on every database that the module supports. Its tests use pgtest.Main.
package testdb

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
)

// Open opens the test's database, each time with connections of its own, as a process does at its
// start.
type Open func(t testing.TB) *Store

// Store is an open database.
type Store struct {
	storage.Store
	db *sql.DB
}

// Exec runs a statement on the database.
func (s *Store) Exec(t testing.TB, statement string) {
	t.Helper()
	if _, err := s.db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

// DB returns the database that the store works on.
func (s *Store) DB() *sql.DB { return s.db }

// Close closes the connections. The end of the test does it too.
func (s *Store) Close() error { return s.db.Close() }

// Each runs f as a subtest on PostgreSQL and on SQLite, each with an empty database of its own.
func Each(t *testing.T, f func(t *testing.T, open Open)) {
	t.Run("postgres", func(t *testing.T) { f(t, Postgres(t)) })
	t.Run("sqlite", func(t *testing.T) { f(t, SQLite(t)) })
}

// Postgres returns an Open for a new schema.
func Postgres(t testing.TB) Open {
	dsn := pgtest.NewSchema(t)
	return func(t testing.TB) *Store {
		db := openDB(t, "postgres", dsn)
		return &Store{postgres.New(db), db}
	}
}

// SQLite returns an Open for a new file.
func SQLite(t testing.TB) Open {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	return func(t testing.TB) *Store {
		db := openDB(t, sqliteDriver, path+sqliteOptions)
		return &Store{sqlite.New(db, sqlite.NewWriter(db), path), db}
	}
}

func openDB(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}
