package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// The servers of these tests wait this long for their database, and answer well within
// answerDeadline of it.
const (
	requestTimeout = 2 * time.Second
	answerDeadline = 10 * requestTimeout
)

// While the database is away a request is refused as one to repeat, and the repeat is stored
// once. The server comes back by itself when its database does.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		var s *Server
		var takeAway, bringBack func()
		switch b {
		case Postgres:
			pg := ownPostgres(t)
			s = StartServer(t, b, withTimeout(Options{Postgres: pg.URL}))
			takeAway, bringBack = must(t, pg.Stop), must(t, pg.Run)
		case SQLite:
			s = StartServer(t, b, withTimeout(Options{}))
			takeAway, bringBack = hold(t, s, "BEGIN EXCLUSIVE")
		}
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		root := NewAdminAPI(s, RegisterAdmin(t, s).AccessToken)
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		alice.Send(t, "m.test", To(object{"n": 0}, bob))

		takeAway()
		txn, body := unique("txn"), To(object{"n": 1}, bob).Body()
		for range 2 {
			// On PostgreSQL not even the access token can be looked up.
			wantUnavailable(t, alice.Put(t.Context(), "m.test", txn, body))
		}
		root.Refused(t, "GET", "/status", nil, "", http.StatusServiceUnavailable, "M_UNKNOWN")
		bringBack()
		wantStoredOnce(t, alice, txn, body)
		events, since := bob.Receive(t, since, 2)
		wantNumbers(t, numbers(t, events), 0, 2)
		bob.Settle(t, since)
	})
}

// The database answers everything but the commits of the module: they wait for a lock. Requests
// are answered 503 within their deadline, those of many clients too, and nothing is stored twice
// although a commit that was given up may still go through when the lock is gone.
func TestCommitBlocked(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, withTimeout(Options{}))
		statement := "BEGIN IMMEDIATE"
		if b == Postgres {
			statement = "BEGIN; LOCK TABLE todevice_position IN ACCESS EXCLUSIVE MODE"
		}
		lock, unlock := hold(t, s, statement)
		const senders = 10
		bob := Register(t, s, "bob")
		clients := make([]*Client, senders)
		for i := range clients {
			clients[i] = Register(t, s, "sender")
		}
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)

		lock()
		txn := unique("txn")
		var wait sync.WaitGroup
		for i, c := range clients {
			for range 2 { // two equal requests of each
				wait.Go(func() {
					start := time.Now()
					a := c.Put(context.Background(), "m.test", txn, To(object{"n": i}, bob).Body())
					if a.Status != http.StatusServiceUnavailable || a.ErrCode == "" {
						t.Errorf("want 503 with an errcode, got %v", a)
					}
					if took := time.Since(start); took > answerDeadline {
						t.Errorf("the answer took %s, with a request_timeout of %s", took, requestTimeout)
					}
				})
			}
		}
		wait.Wait()
		unlock()

		for i, c := range clients {
			wantStoredOnce(t, c, txn, To(object{"n": i}, bob).Body())
		}
		events, since := bob.Receive(t, since, senders)
		seen := map[int]bool{}
		for _, n := range numbers(t, events) {
			seen[n] = true
		}
		if len(seen) != senders {
			t.Errorf("want one message of each of %d senders, got %s", senders, describe(events))
		}
		bob.Settle(t, since)
	})
}

// A read that fails must not pass for an empty queue: that /sync is refused, and its since stays
// good.
func TestReadFails(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, withTimeout(Options{}))
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		sendNumbered(t, alice, bob, 0, 3)
		s.Restart(t) // forgets what waits for whom
		db := s.OpenDatabase(t)
		rename := func(from, to string) {
			t.Helper()
			if _, err := db.Exec(fmt.Sprintf("ALTER TABLE %s RENAME TO %s", from, to)); err != nil {
				t.Fatal(err)
			}
		}

		rename("todevice_messages", "todevice_messages_away")
		for _, sync := range []Sync{{Since: since}, {Since: since, Timeout: longPoll}, {}} {
			if res, a := bob.TrySync(t.Context(), sync); a.Status/100 != 5 || a.ErrCode == "" {
				if res != nil {
					t.Errorf("/sync with since %q: want 5xx with an errcode, got 200 with %d messages", sync.Since, len(res.Events()))
					continue
				}
				t.Errorf("/sync with since %q: want 5xx with an errcode, got %v", sync.Since, a)
			}
		}
		rename("todevice_messages_away", "todevice_messages")

		res := bob.Sync(t, Sync{Since: since})
		wantNumbers(t, numbers(t, res.Events()), 0, 3)
		sendNumbered(t, alice, bob, 3, 4)
		events, since := bob.Receive(t, res.NextBatch, 1)
		wantNumbers(t, numbers(t, events), 3, 4)
		bob.Settle(t, since)
	})
}

func withTimeout(o Options) Options {
	o.ToDevice = object{"request_timeout": requestTimeout.String()}
	return o
}

func wantUnavailable(t *testing.T, a Answer) {
	t.Helper()
	if a.Status != http.StatusServiceUnavailable || a.ErrCode == "" {
		t.Fatalf("want 503 with an errcode, got %v", a)
	}
}

// wantStoredOnce repeats a request until it is accepted, as a client does, and then once more.
func wantStoredOnce(t *testing.T, c *Client, txn string, body []byte) {
	t.Helper()
	eventually(t, "the request is accepted", func() (bool, any) {
		a := c.Put(t.Context(), "m.test", txn, body)
		if a.Err == nil && a.Status/100 != 2 && a.Status/100 != 5 {
			t.Fatalf("want 200, or 5xx for a while, got %v", a)
		}
		return a.Status == http.StatusOK, a
	})
	if a := c.Put(t.Context(), "m.test", txn, body); a.Status != http.StatusOK {
		t.Fatalf("the repeat: want 200, got %v", a)
	}
}

// hold returns functions that take a lock in the server's database, and give it back.
func hold(t *testing.T, s *Server, statement string) (lock, unlock func()) {
	t.Helper()
	var conn *sql.Conn
	exec := func(statement string) func() {
		return func() {
			t.Helper()
			if _, err := conn.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
	}
	lock = func() {
		t.Helper()
		var err error
		if conn, err = s.OpenDatabase(t).Conn(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		exec(statement)()
	}
	return lock, exec("ROLLBACK")
}

func must(t *testing.T, f func() error) func() {
	return func() {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
}
