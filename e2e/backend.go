package e2e

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/internal/pgtest"
	_ "modernc.org/sqlite" // reads the files of a server, built with cgo or without
)

// Backend is a kind of database a server runs on.
type Backend string

// The databases that every test runs on.
const (
	Postgres Backend = "postgres"
	SQLite   Backend = "sqlite"
)

// onBoth runs a test on both databases at once.
func onBoth(t *testing.T, test func(t *testing.T, b Backend)) {
	t.Helper()
	for _, b := range []Backend{Postgres, SQLite} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

// onEach runs a test on one database after the other, for tests that measure.
func onEach(t *testing.T, test func(t *testing.T, b Backend)) {
	t.Helper()
	for _, b := range []Backend{Postgres, SQLite} {
		t.Run(string(b), func(t *testing.T) { test(t, b) })
	}
}

// ownPostgres starts a PostgreSQL that the test may stop and kill.
func ownPostgres(t *testing.T) *pgtest.Server {
	t.Helper()
	pg, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Remove(); err != nil {
			t.Error(err)
		}
	})
	return pg
}

var sharedDatabases atomic.Int64

// createDatabase makes a PostgreSQL database which outlives a single test. pgtest.NewDatabase
// ties a database to one test, and the shared servers serve many.
func createDatabase() (string, error) {
	base := os.Getenv(pgtest.EnvURL)
	db, err := sql.Open("postgres", base)
	if err != nil {
		return "", err
	}
	defer db.Close() //nolint:errcheck
	name := fmt.Sprintf("todevice_e2e_%d_%d", os.Getpid(), sharedDatabases.Add(1))
	if _, err = db.Exec("CREATE DATABASE " + name); err != nil {
		return "", err
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

// dropDatabase drops a database of createDatabase, and cuts what connections it has.
func dropDatabase(dsn string) error {
	db, err := sql.Open("postgres", os.Getenv(pgtest.EnvURL))
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck
	u, err := url.Parse(dsn)
	if err != nil {
		return err
	}
	_, err = db.Exec("DROP DATABASE " + u.Path[1:] + " WITH (FORCE)")
	return err
}

// OpenDatabase opens the database the server keeps its messages in, beside the server.
func (s *Server) OpenDatabase(t *testing.T) *sql.DB {
	t.Helper()
	driver, dsn := "postgres", s.postgres
	if s.Backend == SQLite {
		driver, dsn = "sqlite", "file:"+s.sqliteFile("syncapi")+"?_pragma=busy_timeout(20000)"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func (s *Server) sqliteFile(component string) string {
	return filepath.Join(s.dir, "dendrite_"+component+".db")
}

// Queued returns how many messages the database holds for a device.
func queued(t *testing.T, db *sql.DB, c *Client) int {
	t.Helper()
	var n int
	err := db.QueryRow(
		"SELECT COUNT(*) FROM todevice_messages WHERE user_id = $1 AND device_id = $2",
		c.UserID.String(), c.DeviceID.String(),
	).Scan(&n)
	if err != nil {
		t.Fatalf("counting the queue of %s %s: %v", c.UserID, c.DeviceID, err)
	}
	return n
}

// tableExists tells whether the server's database has a table.
func tableExists(t *testing.T, s *Server, name string) bool {
	t.Helper()
	query := "SELECT COUNT(*) FROM information_schema.tables WHERE table_name = $1"
	if s.Backend == SQLite {
		query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1"
	}
	var n int
	if err := s.OpenDatabase(t).QueryRow(query, name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n > 0
}
