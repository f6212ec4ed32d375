package e2e

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// A server that ends by itself is told to stop meanwhile, as by a supervisor whose operator is impatient: it ends as it was about to.
func TestStoppedWhileEndingByItself(t *testing.T) {
	t.Parallel()
	n := StartNATS(t)
	wire, database := wirePostgres(t, pgtest.NewDatabase(t))
	s := StartServer(t, Postgres, Options{Postgres: database, NATS: n.URL})
	logged := s.logSize()
	wire.Freeze() // the end waits for the database
	n.Kill(t)
	n.Start(t)
	eventually(t, "the server ends", func() (bool, any) {
		output := s.logTail(logged)
		return strings.Contains(output, "msg=Stopping"), output
	})
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wire.Fair()
	code, output := s.WaitExit(t)
	if code != 1 || !strings.Contains(output, "Dendrite is exiting now") {
		t.Errorf("the server ended with %d:\n%s", code, output)
	}
}

// A listener that can't be had ends the server at once, in order, with the reason, whichever it is.
func TestNoListener(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		take func(t *testing.T, s *Server)
		want string
	}{
		"http":  {func(t *testing.T, s *Server) { occupy(t, s.address) }, "failed to serve HTTP\""},
		"https": {func(t *testing.T, s *Server) { occupy(t, s.federation) }, "failed to serve HTTPS\""},
		"unix socket": {
			func(t *testing.T, s *Server) {
				s.tls = []string{"-unix-socket", filepath.Join(t.TempDir(), "gone", "socket")}
			},
			"failed to serve unix socket\"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				s := NewServer(t, b, Options{Federation: true})
				c.take(t, s)
				if err := s.launch(); err != nil {
					t.Fatal(err)
				}
				code, output := s.WaitExit(t)
				if code != 1 || !strings.Contains(output, c.want) || !strings.Contains(output, "Dendrite is exiting now") {
					t.Errorf("the server ended with %d:\n%s", code, output)
				}
			})
		})
	}
}

// occupy listens at an address until the test ends.
func occupy(t *testing.T, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
}

// A server that is stopped while it takes in what is sent to rooms ends well, however often: what it was in the midst of it takes up again.
func TestStoppedUnderRoomTraffic(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice := Register(t, s, "alice")
		room := joinRoom(t, alice)
		for stops := range 12 {
			var sent []string
			ended := make(chan struct{})
			enough := make(chan struct{})
			go func() {
				defer close(ended)
				for n := 0; ; n++ {
					text := fmt.Sprintf("%d of %d", n, stops)
					if _, err := alice.SendText(t.Context(), room, text); err != nil {
						return
					}
					if sent = append(sent, text); n == 20 {
						close(enough)
					}
				}
			}()
			select {
			case <-enough:
			case <-ended:
				t.Fatal("the server takes nothing")
			}
			stop(t, s)
			<-ended
			s.MustStart(t)
			eventually(t, "what was sent last is in the room", func() (bool, any) {
				got := messages(t, alice, room, url.Values{"dir": {"b"}, "limit": {"100"}})
				missing := slices.DeleteFunc(slices.Clone(sent[len(sent)-20:]), func(text string) bool { return slices.Contains(got, text) })
				return len(missing) == 0, missing
			})
		}
	})
}
