package e2e

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
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
func ownPostgres(t testing.TB) *pgtest.Server {
	t.Helper()
	return ownPostgresIn(t, "")
}

// ownPostgresIn starts one with its data below a directory, and with settings.
func ownPostgresIn(t testing.TB, parent string, settings ...string) *pgtest.Server {
	t.Helper()
	pg, err := pgtest.StartIn(parent, settings...)
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

// databaseOn makes a database on a PostgreSQL of the test's own, which ends with it.
func databaseOn(t *testing.T, pg *pgtest.Server, name string) string {
	t.Helper()
	db, err := sql.Open("postgres", pg.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck
	if _, err = db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(pg.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

var sharedDatabases atomic.Int64

// CreateDatabase makes a database, which outlives a single test, on the PostgreSQL that pgtest.EnvURL names, and returns its
// connection URL. pgtest.NewDatabase ties a database to one test.
func CreateDatabase() (string, error) {
	base := os.Getenv(pgtest.EnvURL)
	db, err := sql.Open("postgres", base)
	if err != nil {
		return "", err
	}
	defer db.Close() //nolint:errcheck
	name := fmt.Sprintf("todevice_e2e_%d_%d", os.Getpid(), sharedDatabases.Add(1))
	if _, err = db.Exec("CREATE DATABASE " + name + " TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"); err != nil { // Synapse takes no other
		return "", err
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

// DropDatabase drops a database of CreateDatabase, and cuts what connections it has.
func DropDatabase(dsn string) error {
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
func (s *Server) OpenDatabase(t testing.TB) *sql.DB {
	t.Helper()
	return s.openDatabaseOf(t, "syncapi")
}

// openDatabaseOf opens the database of a component of the host.
func (s *Server) openDatabaseOf(t testing.TB, component string) *sql.DB {
	t.Helper()
	driver, dsn := "postgres", s.postgres
	if s.Backend == SQLite {
		driver, dsn = "sqlite", "file:"+s.sqliteFile(component)+"?_pragma=busy_timeout(20000)"
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
func queued(t testing.TB, db *sql.DB, c *Client) int {
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
func tableExists(t testing.TB, s *Server, name string) bool {
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
