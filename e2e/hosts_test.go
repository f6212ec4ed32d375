package e2e

import (
	"database/sql"
	"strings"
	"testing"
	"time"
)

// Servers of both hosts, each with the module, send to one another while each is killed in turn: nothing is lost, doubled or out of order.
func TestHostsFederate(t *testing.T) {
	t.Parallel()
	const kills = 4
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := StartPair(t, b, Options{}, Options{Host: underTest.Other()})
		load := NewLoadBetween(t, map[*Server]Devices{here: {Senders: 2, Receivers: 2}, there: {Senders: 2, Receivers: 2}})
		figures := load.Run(t, func() {
			for i := range kills {
				load.Progress(t, 300)
				[]*Server{here, there}[i%2].Restart(t)
			}
			load.Progress(t, 300)
		})
		t.Log(figures)
		if !figures.Good() {
			t.Errorf("after %d kills: %s", kills, figures)
		}
		if figures.Retried == 0 {
			t.Error("no request was repeated: the kills met no load")
		}
		wantOutboxEmpty(t, here, there)
		wantOutboxEmpty(t, there, here)
	})
}

// A database moves to the other host, unmodified too, and back, by kills and by stops, with messages waiting for devices and for a server that is
// down. Clients go on with the tokens that they have. Each message arrives once and in order.
func TestDatabaseMovesBetweenHosts(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Federation: true})
		remote := NewFakeRemote(t, s)
		remote.Close(t)
		alice, device := Register(t, s, "alice"), remote.Device("bob", "FIRST")
		h := newHandover(t, s, 2, 12)
		const each = 40
		sent := 0
		talk := func() {
			t.Helper()
			h.send(t, each)
			sendNumbered(t, alice, device, sent, sent+each)
			sent += each
			h.readSome(t)
		}
		talk()
		for _, host := range []Host{underTest.Other(), underTest, underTest.Other(), underTest} {
			if host == underTest {
				stop(t, s)
			} else {
				kill(t, s)
			}
			s.SwitchTo(t, Options{Federation: true, Host: host})
			if log := s.logTail(0); strings.Contains(log, "running in-memory") {
				t.Errorf("%s can't read the streams of %s:\n%s", host, host.Other(), log)
			}
			talk()
		}
		h.readAll(t)
		h.journal.WantGood(t, "between the hosts")
		wantWaiting(t, s, "todevice_outbox", sent)
		remote.Open(t)
		remote.WantNumbers(t, sent, silentRecovery)
		wantNothingKept(t, s, remote.Name)
	})
}

// What waits in the module's tables goes back into those of the other host, unmodified, and from there into the module again.
func TestExportToTheOtherHost(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		h := newHandover(t, s, 2, 12)
		h.send(t, 40)
		h.readSome(t)
		for _, host := range []Host{underTest.Other(), underTest} {
			stop(t, s)
			s.Export(t)
			s.SwitchTo(t, Options{Host: host, Unmodified: true})
			h.send(t, 10)
			wantStored(t, s)
			s.SwitchTo(t, Options{Host: host})
			wantWaiting(t, s, "syncapi_send_to_device", 0)
			h.send(t, 10)
			h.readSome(t)
		}
		h.readAll(t)
		h.journal.WantGood(t, "through the other host, unmodified")
	})
}

// wantStored waits until unmodified Dendrite has stored what was sent: it takes a message from its stream once more if it ends between storing and
// acknowledging it, but not once a later one is stored.
func wantStored(t *testing.T, s *Server) {
	t.Helper()
	last := Register(t, s, "last")
	last.Send(t, "org.example.last", To(object{}, last))
	withDatabase(t, s, func(db *sql.DB) {
		within(t, time.Minute, "what was sent is stored", func() (bool, any) {
			var n int
			err := db.QueryRow(`SELECT COUNT(*) FROM syncapi_send_to_device WHERE user_id = $1`, last.UserID.String()).Scan(&n)
			return n == 1, err
		})
	})
}
