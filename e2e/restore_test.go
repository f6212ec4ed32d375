package e2e

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// The operator restores a backup: clients come back with tokens from after it. Their old token
// must not hide or delete a message that is sent after the restore.
func TestRestoredBackup(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		sendNumbered(t, alice, carol, 0, 2)
		whileStopped(t, s, func() { backUp(t, s) })
		sendNumbered(t, alice, bob, 0, 50)
		events, since := bob.Receive(t, since, 50)
		wantNumbers(t, numbers(t, events), 0, 50)
		since = bob.Settle(t, since)

		whileStopped(t, s, func() { restore(t, s) })
		sendNumbered(t, alice, bob, 50, 53)
		for range 2 {
			res := bob.Sync(t, Sync{Since: since, Timeout: longPoll})
			wantNumbers(t, numbers(t, res.Events()), 50, 53)
		}
		events, next := bob.Receive(t, since, 3)
		wantNumbers(t, numbers(t, events), 50, 53)
		if position(t, next) <= position(t, since) {
			t.Errorf("the position went from %d back to %d", position(t, since), position(t, next))
		}
		bob.Settle(t, next)
		// What was waiting in the backup is there again.
		wantNumbers(t, numbers(t, carol.Sync(t, Sync{}).Events()), 0, 2)
	})
}

func whileStopped(t *testing.T, s *Server, action func()) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	action()
	s.MustStart(t)
}

func backUp(t *testing.T, s *Server) {
	t.Helper()
	if s.Backend == SQLite {
		copyFile(t, s.sqliteFile("syncapi"), s.path("backup.db"))
		return
	}
	name := databaseName(t, s)
	administer(t, fmt.Sprintf("CREATE DATABASE %s_backup TEMPLATE %s", name, name))
}

func restore(t *testing.T, s *Server) {
	t.Helper()
	if s.Backend == SQLite {
		for _, suffix := range []string{"-wal", "-shm", "-journal"} {
			_ = os.Remove(s.sqliteFile("syncapi") + suffix)
		}
		copyFile(t, s.path("backup.db"), s.sqliteFile("syncapi"))
		return
	}
	name := databaseName(t, s)
	administer(t, "DROP DATABASE "+name+" WITH (FORCE)")
	administer(t, fmt.Sprintf("ALTER DATABASE %s_backup RENAME TO %s", name, name))
}

func databaseName(t *testing.T, s *Server) string {
	t.Helper()
	u, err := url.Parse(s.postgres)
	if err != nil {
		t.Fatal(err)
	}
	return u.Path[1:]
}

func administer(t *testing.T, statement string) {
	t.Helper()
	db, err := sql.Open("postgres", os.Getenv(pgtest.EnvURL))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck
	if _, err = db.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
