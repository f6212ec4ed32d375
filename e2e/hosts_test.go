package e2e

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
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

// An unmodified Dendrite is followed by the module in the other host: what waits in its table, and in its queues for other servers, is handed over once.
func TestOtherHostTakesOverUnmodified(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Federation: true, Unmodified: true})
		remote := NewFakeRemote(t, s)
		remote.Close(t)
		h := newHandover(t, s, 2, 12)
		h.send(t, 20)
		h.readSome(t)
		const away = 30
		alice, device := Register(t, s, "alice"), remote.Device("bob", "FIRST")
		sendNumbered(t, alice, device, 0, away)
		wantStored(t, s)
		db := s.openDatabaseOf(t, "federationapi")
		eventually(t, "they are in the queue of the other server", func() (bool, any) {
			var n int
			err := db.QueryRow(`SELECT COUNT(*) FROM federationsender_queue_edus`).Scan(&n)
			return n == away, fmt.Sprint(n, err)
		})
		_ = db.Close()
		stop(t, s)
		s.SwitchTo(t, Options{Federation: true, Host: underTest.Other()})
		wantWaiting(t, s, "syncapi_send_to_device", 0)
		h.send(t, 10)
		h.readAll(t)
		h.journal.WantGood(t, "from the other host, unmodified")
		remote.Open(t)
		got := numbers(t, events(remote.Receive(t, away, 2*time.Minute)))
		slices.Sort(got) // Dendrite's own queue has no order
		wantNumbers(t, got, 0, away)
	})
}

// What a host remembers, so that a repetition is stored once, the other one remembers too: the transaction IDs of clients, and the transactions and
// messages of other servers.
func TestOtherHostKnowsRepetitions(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Federation: true})
		remote := NewFakeRemote(t, s)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, "")
		hosts := []Host{underTest.Other(), underTest, underTest.Other(), underTest}
		for i, host := range hosts {
			txnID, messageID := unique("txn"), unique("message")
			body := To(object{"n": 2 * i}, bob, remote.Device("carol", "FIRST"))
			edu := object{"edu_type": "m.direct_to_device", "content": object{
				"sender": remote.User("eve"), "type": "m.test", "message_id": messageID,
				"messages": Messages{bob.UserID: {"*": object{"n": 2*i + 1}}},
			}}
			alice.SendTxn(t, "m.test", txnID, body)
			remote.MustSend(t, s, txnID, edu)
			if host == underTest {
				stop(t, s)
			} else {
				kill(t, s)
			}
			s.SwitchTo(t, Options{Federation: true, Host: host})
			alice.SendTxn(t, "m.test", txnID, body)
			remote.MustSend(t, s, txnID, edu)
			remote.MustSend(t, s, unique("txn"), edu)
			var events []Event
			events, since = bob.Receive(t, since, 2)
			wantNumbers(t, numbers(t, events), 2*i, 2*i+2)
		}
		bob.WantNothing(t, since)
		wantNothingKept(t, s, remote.Name)
		if got := remote.Messages(); len(got) != len(hosts) {
			t.Errorf("the other server got %d messages, want %d", len(got), len(hosts))
		}
	})
}

// The start of the other host is killed at every stage of it, again and again: nothing is lost or doubled of what waits for devices, for a server
// that is down, and in Dendrite's streams.
func TestKilledWhileMovingToTheOtherHost(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Federation: true})
		remote := NewFakeRemote(t, s)
		remote.Close(t)
		alice, bob, device := Register(t, s, "alice"), Register(t, s, "bob"), remote.Device("carol", "FIRST")
		since := bob.Settle(t, "")
		h := newHandover(t, s, 1, 6)
		const each, entries = 20, 500
		db := s.OpenDatabase(t)
		host := underTest
		next := func() {
			t.Helper()
			host = host.Other()
			s.stopAnd(t, Options{Federation: true, Host: host})
		}
		const entriesAreTaken = "" // which no log tells
		stages := [][]string{
			{"Dendrite version", "Starting nats-server", entriesAreTaken}, {"Restored", "Recovering", entriesAreTaken},
			{"Server is ready", "Starting external listener", entriesAreTaken},
		}
		for i, logged := range stages {
			h.send(t, each)
			sendNumbered(t, alice, device, i*each, (i+1)*each)
			h.readSome(t)
			kill(t, s)
			withStreams(t, s, func(js nats.JetStreamContext) { publishNumbered(t, js, bob, i*entries, (i+1)*entries) })
			for _, last := range logged {
				next()
				from, before := s.logSize(), queued(t, db, bob)
				if err := s.launch(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the start gets so far", func() (bool, any) {
					log := s.logTail(from)
					reached := strings.Contains(log, last)
					if last == entriesAreTaken {
						reached = queued(t, db, bob) > before
					}
					return reached || !s.running(), log
				})
				kill(t, s)
			}
			next()
			supervise(t, s)
		}
		_ = db.Close()
		sent := each * len(stages)
		h.readAll(t)
		h.journal.WantGood(t, "starts that were killed")
		got, _ := collect(t, bob, since, entries*len(stages)-1)
		wantNumbers(t, got, 0, entries*len(stages))
		wantWaiting(t, s, "todevice_outbox", sent)
		remote.Open(t)
		remote.WantNumbers(t, sent, silentRecovery)
		wantNothingKept(t, s, remote.Name)
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
