package e2e

import (
	"net"
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

// An address that is in use ends the server at once, in order, with the reason.
func TestAddressInUse(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := NewServer(t, b, Options{})
		occupied, err := net.Listen("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer occupied.Close() //nolint:errcheck
		if err = s.launch(); err != nil {
			t.Fatal(err)
		}
		code, output := s.WaitExit(t)
		if code != 1 || !strings.Contains(output, "address already in use") || !strings.Contains(output, "Dendrite is exiting now") {
			t.Errorf("the server ended with %d:\n%s", code, output)
		}
	})
}
