package e2e

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// wantLocked waits until a server has its lock on a PostgreSQL again, whose loss it may notice some seconds after a connection was cut.
// Until then a second server can take its place.
func wantLocked(t testing.TB, s *Server) {
	t.Helper()
	if s.Backend != Postgres {
		return
	}
	db := s.OpenDatabase(t)
	defer db.Close() //nolint:errcheck
	eventually(t, "the server has its lock on the database", func() (bool, any) {
		var held int
		err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted").Scan(&held)
		return err == nil && held > 0, err
	})
}

// second is another server that is started on the database of one that is kept running. It refuses to, and the first one goes on. Where
// the first one ends by itself in that moment, as some seconds after it lost NATS, the other one may take its place.
func second(t testing.TB, k *keeper) *fault {
	t.Helper()
	s := NewServer(t, k.s.Backend, Options{DatabaseOf: k.s})
	return &fault{
		name: "second server", alone: true,
		inject: func(t testing.TB, _ *rand.Rand) {
			wantLocked(t, k.s)
			logged, runs := s.logSize(), k.runs.Load()
			if err := s.launch(); err != nil {
				t.Fatal(err)
			}
			if err := s.awaitAnswer(); err == nil {
				orFail(t, s.Stop())
				if k.runs.Load() == runs {
					t.Error("a second server started on one database while the first one ran")
				}
				return
			}
			code, _ := s.WaitExit(t)
			if output := s.logTail(logged); code == 0 || !strings.Contains(output, "another process writes send-to-device messages") {
				t.Errorf("a second server on one database ended with %d:\n%s", code, output)
			}
		},
		heal: func(testing.TB) {},
	}
}
