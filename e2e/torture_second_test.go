package e2e

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// second is another server that is started on the database of one that runs. It refuses to, and the first one goes on.
func second(t testing.TB, first *Server) *fault {
	t.Helper()
	s := NewServer(t, first.Backend, Options{DatabaseOf: first})
	return &fault{
		name: "second server", alone: true,
		inject: func(t testing.TB, _ *rand.Rand) {
			logged := s.logSize()
			if err := s.launch(); err != nil {
				t.Fatal(err)
			}
			code, _ := s.WaitExit(t)
			if output := s.logTail(logged); code == 0 || !strings.Contains(output, "another process writes send-to-device messages") {
				t.Errorf("a second server on one database ended with %d:\n%s", code, output)
			}
		},
		heal: func(testing.TB) {},
	}
}
