package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// supervisorPatience is what the systemd unit and docs/operating.md give a stop before they kill the server.
const supervisorPatience = 30 * time.Second

// The network to the database swallows everything and ends no connection, so that whoever waits for an answer waits for ever. A stop
// comes to its end all the same before a supervisor loses its patience, says that it was not a clean one, and
// nothing that was answered 200 is lost.
func TestStoppedWhileDatabaseSilent(t *testing.T) {
	t.Parallel()
	wire, database := wirePostgres(t, pgtest.NewDatabase(t))
	s := StartServer(t, Postgres, withTimeout(Options{Postgres: database}))
	alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
	since := bob.Settle(t, "")
	alice.Send(t, "m.test", To(object{"n": 0}, bob))

	wire.Freeze()
	txn, body := unique("txn"), To(object{"n": 1}, bob).Body()
	wantUnavailable(t, alice.Put(t.Context(), "m.test", txn, body)) // by now its commit hangs
	began := time.Now()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code, output := s.WaitExit(t)
	if took := time.Since(began); took >= supervisorPatience {
		t.Errorf("the stop took %s", took)
	}
	if code != 1 {
		t.Errorf("a stop that was given up ended with %d:\n%s", code, output)
	}
	wire.Fair()
	supervise(t, s)
	wantStoredOnce(t, alice, txn, body)
	events, since := bob.Receive(t, since, 2)
	wantNumbers(t, numbers(t, events), 0, 2)
	bob.Settle(t, since)
}
