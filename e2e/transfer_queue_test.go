package e2e

import (
	"database/sql"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// handover is 50 devices whose messages go through unmodified Dendrite, the module and unmodified Dendrite again.
type handover struct {
	s         *Server
	journal   *Journal
	senders   []*Client
	receivers []*Client
	since     []string // the token that each receiver goes on with
	sent      int
}

func newHandover(t *testing.T, s *Server, senders, receivers int) *handover {
	t.Helper()
	h := &handover{s: s, journal: NewJournal()}
	for range senders {
		h.senders = append(h.senders, Register(t, s, "sender"))
	}
	for range receivers {
		c := Register(t, s, "receiver")
		h.receivers, h.since = append(h.receivers, c), append(h.since, c.Settle(t, ""))
	}
	return h
}

// send has each sender send n messages more to every receiver.
func (h *handover) send(t *testing.T, n int) {
	t.Helper()
	var group sync.WaitGroup
	for _, from := range h.senders {
		group.Go(func() { h.journal.Send(t.Context(), t, from, h.sent, h.sent+n, h.receivers...) })
	}
	group.Wait()
	h.sent += n
}

// each runs f for all receivers at once.
func (h *handover) each(f func(i int, c *Client)) {
	var group sync.WaitGroup
	for i, c := range h.receivers {
		group.Go(func() { f(i, c) })
	}
	group.Wait()
}

// readSome leaves the receivers in the states that a switch may meet: a third read something and keep the token that
// acknowledges it, a third read it too but did not get the answer, and a third read nothing.
func (h *handover) readSome(t *testing.T) {
	t.Helper()
	h.each(func(i int, c *Client) {
		if i%3 == 2 {
			return
		}
		res, a := c.TrySync(t.Context(), Sync{Since: h.since[i]})
		if res == nil || len(res.Events()) == 0 {
			t.Errorf("%s read nothing: %v", c.UserID, a)
			return
		}
		if i%3 == 0 {
			if err := h.journal.Arrived(c.UserID.String(), res.Events()); err != nil {
				t.Error(err)
			}
			h.since[i] = res.NextBatch
		}
	})
}

// readAll reads until all that was sent has arrived, and once more.
func (h *handover) readAll(t *testing.T) {
	t.Helper()
	h.each(func(i int, c *Client) { h.journal.Collect(t, c, h.since[i], time.Minute) })
}

// wantWaiting waits until so many rows are in a table of the sync API's database.
func wantWaiting(t *testing.T, s *Server, table string, want int) {
	t.Helper()
	withDatabase(t, s, func(db *sql.DB) {
		within(t, 5*time.Minute, fmt.Sprintf("%d messages are in %s", want, table), func() (bool, any) {
			var n int
			if err := db.QueryRow("SELECT COUNT(*) FROM " + table).Scan(&n); err != nil {
				return false, err
			}
			return n == want, n
		})
	})
}

// 5,000 messages wait on 50 devices when the module comes, and more when it goes: each device gets every message once and
// in order, whether it has read before the switch or not, and whether its client got the answer. With a database of the module's own 1,000
// are enough, of which unmodified Dendrite stores some 40 a second.
func TestThereAndBackWithoutLoss(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		options func(testing.TB, *Server) Options
		each    int // of two senders, for each of the devices
	}{
		"same database": {func(testing.TB, *Server) Options { return Options{} }, 50},
		"own database":  {ownDatabase, 10},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				s := StartServer(t, b, Options{Unmodified: true})
				h := newHandover(t, s, 2, 50)
				h.send(t, test.each)
				wantWaiting(t, s, "syncapi_send_to_device", 2*50*test.each)
				h.readSome(t)

				withModule := test.options(t, s)
				s.SwitchTo(t, withModule)
				wantWaiting(t, s, "syncapi_send_to_device", 0)
				h.send(t, 10)
				h.readSome(t)
				h.send(t, 10)

				if err := s.Stop(); err != nil {
					t.Fatal(err)
				}
				report := s.Export(t)
				// A third has acknowledged what it read before the first switch, at most 100 messages.
				if report.Queues.Messages < 40*test.each || report.Queues.Devices != 50 || report.Queues.Renumbered != 0 {
					t.Errorf("the export reports %+v", report)
				}
				wantWaiting(t, s, "syncapi_send_to_device", report.Queues.Messages)
				if again := s.Export(t); again.Queues.Messages != 0 {
					t.Errorf("exported again: %+v", again)
				}
				s.SwitchTo(t, Options{Unmodified: true})
				h.send(t, 10)
				h.readAll(t)
				h.journal.WantGood(t, "there and back")
			})
		})
	}
}

// A way back without export, and the way there again, lose nothing that is sent from then on, for clients that keep their
// tokens. With export nothing at all is lost.
func TestGoingBackAndThereAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, "")
		exchange := func(label string) {
			t.Helper()
			alice.Send(t, "org.example."+label, To(object{"n": 1}, bob))
			alice.Send(t, "org.example."+label, To(object{"n": 2}, bob))
			var events []Event
			events, since = bob.Receive(t, since, 2)
			if events[0].Type != "org.example."+label || events[1].Type != "org.example."+label {
				t.Errorf("%s: got %s", label, describe(events))
			}
		}
		exchange("enabled")
		for range 2 {
			s.SwitchTo(t, Options{ToDevice: object{"enabled": false}})
			exchange("switched.off")
			s.SwitchTo(t, Options{Unmodified: true})
			exchange("unmodified")
			alice.Send(t, "org.example.waiting", To(object{"n": 3}, bob))
			// Unmodified Dendrite takes a message from its stream once more if it ends between storing and acknowledging it. Once a
			// later one is stored this one is acknowledged.
			alice.Send(t, "org.example.later", To(object{}, alice))
			wantWaiting(t, s, "syncapi_send_to_device WHERE content LIKE '%org.example.later%'", 1)
			s.SwitchTo(t, Options{})
			var events []Event
			if events, since = bob.Receive(t, since, 1); events[0].Type != "org.example.waiting" {
				t.Errorf("got %s", describe(events))
			}
			exchange("enabled.again")
		}
		alice.Send(t, "org.example.waiting", To(object{"n": 3}, bob))
		s.stopAnd(t, Options{ToDevice: object{"enabled": false}})
		if report := s.Export(t); report.Queues.Messages < 1 {
			t.Errorf("the export reports %+v", report)
		}
		s.MustStart(t)
		events, _ := bob.Receive(t, since, 1)
		if events[0].Type != "org.example.waiting" {
			t.Errorf("got %s", describe(events))
		}
	})
}

// The module says how many of its messages were out of reach while the host ran without it.
func TestCarelessWayBackIsLogged(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		for range 3 {
			alice.Send(t, "org.example.left", To(object{}, bob))
		}
		const warning = "the host ran without the module"
		s.SwitchTo(t, Options{})
		if log := s.logTail(0); strings.Contains(log, warning) {
			t.Errorf("the host is said to have run without the module:\n%s", log)
		}
		s.SwitchTo(t, Options{Unmodified: true})
		alice.Send(t, "org.example.new", To(object{}, bob))
		wantWaiting(t, s, "syncapi_send_to_device", 1)
		s.SwitchTo(t, Options{})
		if log := s.logTail(0); !strings.Contains(log, warning) || !strings.Contains(log, "messages=3") {
			t.Errorf("the log does not say that 3 messages were left behind:\n%s", log)
		}
	})
}

// Starts of the module alone do not move positions ahead of the clock.
func TestRestartsKeepPositionsAtTheClock(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		bob := Register(t, s, "bob")
		for range 3 {
			s.Restart(t)
			if got, now := bob.Sync(t, Sync{}).Position(t), time.Now().UnixMicro(); got > now {
				t.Fatalf("the position %d is %s ahead of the clock", got, time.Duration(got-now)*time.Microsecond)
			}
		}
	})
}

// What waits for a remote that is down is sent by unmodified Dendrite after an export, each message once.
func TestExportOfTheOutbox(t *testing.T) {
	t.Parallel()
	exportOfTheOutbox(t, underTest)
}

func TestExportOfTheOutboxToTheOtherHost(t *testing.T) {
	t.Parallel()
	exportOfTheOutbox(t, underTest.Other())
}

// exportOfTheOutbox goes from the host under test to a host, unmodified.
func exportOfTheOutbox(t *testing.T, to Host) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Federation: true})
		remote := NewFakeRemote(t, s)
		remote.Close(t)
		alice := Register(t, s, "alice")
		for n := range 300 {
			alice.Send(t, "m.test", To(object{"n": n}, remote.Device("bob", "KNOWN")))
		}
		wantWaiting(t, s, "todevice_outbox", 300)
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		report := s.Export(t)
		if report.Outbox.EDUs != 300 || report.Outbox.Destinations != 1 || report.Outbox.Known != 0 {
			t.Errorf("the export reports %+v", report)
		}
		wantWaiting(t, s, "todevice_outbox", 0)
		remote.Open(t)
		s.SwitchTo(t, Options{Federation: true, Unmodified: true, Host: to})
		got := events(remote.Receive(t, 300, 2*time.Minute))
		if i := slices.IndexFunc(got, func(e Event) bool { return e.Type != "m.test" }); i >= 0 {
			t.Errorf("something else arrived: %s", describe(got[i:i+1]))
		}
		seen := make(map[int]int)
		for _, n := range numbers(t, got) {
			seen[n]++
		}
		for n := range 300 {
			if seen[n] != 1 {
				t.Errorf("message %d arrived %d times", n, seen[n])
			}
		}
	})
}

// An export has nothing to do on a database that the module never ran on, and leaves it as it is.
func TestExportOfNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := NewServer(t, b, Options{NoSection: true})
		if b == Postgres {
			if report := s.Export(t); !report.Nothing {
				t.Errorf("the export of an empty database reports %+v", report)
			}
		} else {
			// A path that is wrong, or relative to another directory, must not pass for a server without messages.
			out, err := s.exportCommand().CombinedOutput()
			if err == nil || !strings.Contains(string(out), "the database is not there") {
				t.Errorf("the export of a missing database: error %v\n%s", err, out)
			}
			if _, err := os.Stat(s.sqliteFile("syncapi")); !os.IsNotExist(err) {
				t.Errorf("the export made a database (error %v)", err)
			}
		}
		s.SwitchTo(t, Options{Unmodified: true})
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if report := s.Export(t); !report.Nothing {
			t.Errorf("the export of unmodified Dendrite's database reports %+v", report)
		}
		if tableExists(t, s, "todevice_messages") {
			t.Error("the export made tables")
		}
	})
}

// While a server runs nothing is exported.
func TestExportRefuses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice := Register(t, s, "alice")
		alice.Send(t, "org.example.kept", To(object{}, alice))
		refused := func(why string, flags ...string) {
			t.Helper()
			out, err := s.exportCommand(flags...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), why) {
				t.Errorf("export with %v: error %v, want one with %q:\n%s", flags, err, why, out)
			}
			withDatabase(t, s, func(db *sql.DB) {
				if n := queued(t, db, alice); n != 1 {
					t.Errorf("%d messages are left, want 1", n)
				}
			})
		}
		refused("another process writes send-to-device messages", "--force")
		if b == SQLite {
			refused("another process writes send-to-device messages")
			return // nothing tells that an unmodified Dendrite uses a file
		}
		refused("another process uses the database")
		s.SwitchTo(t, Options{Unmodified: true})
		refused("another process uses the database")
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if report := s.Export(t); report.Queues.Messages != 1 {
			t.Errorf("the export reports %+v", report)
		}
	})
}
