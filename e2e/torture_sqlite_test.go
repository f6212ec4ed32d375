package e2e

import (
	"database/sql"
	"math/rand/v2"
	"testing"
)

// sqliteFaults are those of a server's SQLite file.
func sqliteFaults(s *Server) []*fault {
	return []*fault{
		locked("SQLite locked for writing", s, "BEGIN IMMEDIATE"),
		locked("SQLite locked", s, "BEGIN EXCLUSIVE"),
	}
}

// locked is a foreign process that holds a lock on the file.
func locked(name string, s *Server, statement string) *fault {
	var db *sql.DB
	var conn *sql.Conn
	return &fault{
		name: name, part: "SQLite",
		inject: func(t testing.TB, _ *rand.Rand) {
			t.Helper()
			var err error
			db = s.OpenDatabase(t)
			if conn, err = db.Conn(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err = conn.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		},
		heal: func(t testing.TB) {
			t.Helper()
			_, err := conn.ExecContext(t.Context(), "ROLLBACK")
			orFail(t, err)
			orFail(t, conn.Close())
			orFail(t, db.Close())
		},
	}
}
