package e2e

import (
	"bytes"
	"os"
	"testing"
)

// Killed four times while eight devices send to four: nothing that was answered with 200 is
// lost, nothing comes twice or out of order, although the clients repeat what had no answer.
func TestKilledUnderLoad(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		load := NewLoad(t, s, 8, 4)
		figures := load.Run(t, func() {
			for range 4 {
				load.Progress(t, 600)
				s.Restart(t)
			}
			load.Progress(t, 600)
		})
		t.Log(figures)
		if !figures.Good() {
			t.Errorf("after four kills: %s", figures)
		}
		if figures.Retried == 0 {
			t.Error("no request was repeated: the kills met no load")
		}
	})
}

// Stopped by its operator under the same load, and started again.
func TestStoppedUnderLoad(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		load := NewLoad(t, s, 8, 4)
		figures := load.Run(t, func() {
			for range 2 {
				load.Progress(t, 600)
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
				s.MustStart(t)
			}
			load.Progress(t, 600)
		})
		t.Log(figures)
		if !figures.Good() {
			t.Errorf("after two stops: %s", figures)
		}
	})
}

// A stop does not wait for the timeout of a /sync that waits, and the token of that client is
// good afterwards.
func TestStopWithWaitingSync(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		res, _ := duringAnySync(t, bob, Sync{Since: since, Timeout: 2 * stopDeadline}, func() {
			if err := s.Stop(); err != nil { // fails after stopDeadline
				t.Error(err)
			}
		})
		if res != nil { // an answer is as good as none, but it counts
			if len(res.Events()) > 0 {
				t.Errorf("a message that nobody sent: %s", describe(res.Events()))
			}
			since = res.NextBatch
		}
		s.MustStart(t)
		sendNumbered(t, alice, bob, 0, 1)
		events, since := bob.Receive(t, since, 1)
		wantNumbers(t, numbers(t, events), 0, 1)
		bob.Settle(t, since)
	})
}

// The database killed three times under the same load, in the midst of commits: what became of each is
// found out, never guessed.
func TestDatabaseKilledUnderLoad(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t)
	s := StartServer(t, Postgres, Options{Postgres: pg.URL})
	load := NewLoad(t, s, 8, 4)
	figures := load.Run(t, func() {
		for range 3 {
			load.Progress(t, 600)
			if err := pg.Kill(); err != nil {
				t.Error(err)
			}
			if err := pg.Run(); err != nil {
				t.Error(err)
			}
		}
		load.Progress(t, 600)
	})
	t.Log(figures)
	if !figures.Good() {
		t.Errorf("after three kills of the database: %s", figures)
	}
	log, err := os.ReadFile(s.path("server.log"))
	if err != nil {
		t.Fatal(err)
	}
	// A request that was under way may have waited for the database instead, or its commit may have been found stored.
	met := bytes.Contains(log, []byte("storing messages failed, trying again")) || bytes.Contains(log, []byte("what became of a commit failed, trying again"))
	if figures.Retried == 0 && !met {
		t.Error("no commit failed: the kills met no load")
	}
}
