package e2e

import (
	"strings"
	"testing"
	"time"
)

// The other server is down while messages are sent, and the sender is killed before it comes back: all
// of them arrive, once and in order, without anyone's doing.
func TestRemoteDown(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedPair(t, b)
		alice, bob := Register(t, here, "alice"), Register(t, there, "bob")
		since := bob.Settle(t, "")
		if err := there.Kill(); err != nil {
			t.Fatal(err)
		}
		j := NewJournal()
		j.Send(t.Context(), t, alice, 0, 300, bob)
		here.Restart(t)
		there.MustStart(t)
		j.Collect(t, bob, since, silentRecovery)
		j.WantGood(t, "the remote down and the sender killed")
		wantOutboxEmpty(t, here, there)
	})
}

// The receiver, the sender, or both are killed three times while messages cross.
func TestKilledWhileMessagesCross(t *testing.T) {
	for name, killed := range map[string]func(here, there *Server) []*Server{
		"receiver": func(_, there *Server) []*Server { return []*Server{there} },
		"sender":   func(here, _ *Server) []*Server { return []*Server{here} },
		"both":     func(here, there *Server) []*Server { return []*Server{here, there} },
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				here, there := SharedPair(t, b)
				load := NewLoadBetween(t, map[*Server]Devices{here: {Senders: 1}, there: {Receivers: 1}})
				figures := load.Run(t, func() {
					for range 3 {
						load.Progress(t, 125)
						var restarts []func() error
						for _, s := range killed(here, there) {
							if err := s.Kill(); err != nil {
								t.Error(err)
							}
							restarts = append(restarts, s.Start)
						}
						together(t, restarts...)
					}
					load.Progress(t, 125)
				})
				t.Log(figures)
				if !figures.Good() || figures.Arrived < 500 {
					t.Errorf("after three kills: %s", figures)
				}
				wantOutboxEmpty(t, here, there)
			})
		})
	}
}

// The host gives up on a server that was down for long, and drops what it is to send there. The messages
// are kept, and arrive when the server is back, although it says nothing.
func TestRemoteGivenUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := StartPair(t, b, Options{SendMaxRetries: 1}, Options{})
		alice, bob := Register(t, here, "alice"), Register(t, there, "bob")
		since := bob.Settle(t, "")
		if err := there.Kill(); err != nil {
			t.Fatal(err)
		}
		j := NewJournal()
		j.Send(t.Context(), t, alice, 0, 1, bob)
		within(t, time.Minute, "the host gives up", func() (bool, any) {
			log := here.logTail(0)
			return strings.Contains(log, "Blacklisting"), log
		})
		j.Send(t.Context(), t, alice, 1, 301, bob)
		there.MustStart(t)
		j.Collect(t, bob, since, silentRecovery)
		j.WantGood(t, "the remote given up")
		wantOutboxEmpty(t, here, there)
	})
}

// The databases of both servers are killed three times while messages cross both ways.
func TestDatabasesKilledWhileMessagesCross(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t)
	start := func(name string) *Server {
		return StartServer(t, Postgres, Options{Federation: true, Postgres: databaseOn(t, pg, name)})
	}
	here, there := start("here"), start("there")
	load := NewLoadBetween(t, map[*Server]Devices{here: {Senders: 2, Receivers: 1}, there: {Senders: 2, Receivers: 1}})
	figures := load.Run(t, func() {
		for range 3 {
			load.Progress(t, 300)
			if err := pg.Kill(); err != nil {
				t.Error(err)
			}
			if err := pg.Run(); err != nil {
				t.Error(err)
			}
		}
		load.Progress(t, 300)
	})
	t.Log(figures)
	if !figures.Good() {
		t.Errorf("after three kills of the databases: %s", figures)
	}
	wantOutboxEmpty(t, here, there)
	wantOutboxEmpty(t, there, here)
}

// Messages of both ways wait for a remote when the module is switched on: those that the host keeps
// and those that come after.
func TestSwitchedOnWhileMessagesWait(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := StartPair(t, b, Options{ToDevice: object{"enabled": false}}, Options{})
		alice, carol, bob := Register(t, here, "alice"), Register(t, here, "carol"), Register(t, there, "bob")
		since := bob.Settle(t, "")
		if err := there.Stop(); err != nil {
			t.Fatal(err)
		}
		old, young := NewJournal(), NewJournal()
		old.Send(t.Context(), t, carol, 0, 20, bob)
		db := here.openDatabaseOf(t, "federationapi")
		eventually(t, "the host has put them in its queue", func() (bool, any) {
			var n int
			err := db.QueryRow("SELECT COUNT(*) FROM federationsender_queue_edus WHERE server_name = $1", there.name).Scan(&n)
			return err == nil && n == 20, []any{n, err}
		})
		here.SwitchTo(t, Options{Federation: true})
		young.Send(t.Context(), t, alice, 0, 20, bob)
		there.MustStart(t)
		var events []Event
		within(t, silentRecovery, "all messages arrive", func() (bool, any) {
			res := bob.Sync(t, Sync{Since: since, Timeout: time.Second})
			events, since = append(events, res.Events()...), res.NextBatch
			return len(events) >= 40, len(events)
		})
		bob.Settle(t, since)
		for _, e := range events {
			j := old
			if e.Sender == alice.UserID.String() {
				j = young
			}
			if err := j.Arrived(bob.UserID.String(), []Event{e}); err != nil {
				t.Error(err)
			}
		}
		young.WantGood(t, "sent since the module was switched on")
		// The host keeps no order, and ours can't know of it.
		if figures := old.Check(); figures.Lost+figures.Doubled > 0 {
			t.Errorf("sent before the module was switched on: %s", figures)
		}
	})
}

// wantOutboxEmpty waits until nothing is kept for another server: what has arrived is deleted.
func wantOutboxEmpty(t *testing.T, s, destination *Server) {
	t.Helper()
	wantNothingKept(t, s, destination.name)
}

func wantNothingKept(t *testing.T, s *Server, destination string) {
	t.Helper()
	db := s.OpenDatabase(t)
	within(t, silentRecovery, "the outbox is empty", func() (bool, any) {
		var waiting, refused int
		err := db.QueryRow(`SELECT (SELECT COUNT(*) FROM todevice_outbox WHERE destination = $1),
			(SELECT COUNT(*) FROM todevice_refused WHERE destination = $1)`, destination).Scan(&waiting, &refused)
		return err == nil && waiting+refused == 0, []any{waiting, refused, err}
	})
}
