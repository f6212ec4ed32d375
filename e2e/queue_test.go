package e2e

import (
	"slices"
	"testing"
)

// A full queue comes in batches, in order, each at once; then /sync waits. What a since token
// covers is deleted.
func TestWaitingMessagesComeInBatches(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		sendNumbered(t, alice, bob, 0, 250)

		var got []int
		last := position(t, since)
		for i, want := range []int{100, 100, 50} {
			res := bob.Sync(t, Sync{Since: since, Timeout: longPoll})
			if n := len(res.Events()); n != want {
				t.Fatalf("batch %d: want %d messages, got %d", i, want, n)
			}
			if res.Elapsed >= longPoll/2 {
				t.Errorf("batch %d came after %s, want at once", i, res.Elapsed)
			}
			got, since = append(got, numbers(t, res.Events())...), res.NextBatch
			if now := res.Position(t); now <= last {
				t.Errorf("batch %d: the position went from %d to %d", i, last, now)
			} else {
				last = now
			}
		}
		wantNumbers(t, got, 0, 250)

		since = bob.Settle(t, since)
		wantBlocks(t, bob, since)
		db := s.OpenDatabase(t)
		eventually(t, "the messages that were acknowledged are deleted", func() (bool, any) {
			n := queued(t, db, bob)
			return n == 0, n
		})
	})
}

// A /sync that waits is answered by the first message, not by its timeout.
func TestWaitingSyncWakesUp(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		res := duringSync(t, bob, Sync{Since: since, Timeout: longPoll}, func() {
			sendNumbered(t, alice, bob, 0, 1)
		})
		wantNumbers(t, numbers(t, res.Events()), 0, 1)
		if res.Elapsed >= longPoll {
			t.Errorf("/sync took %s", res.Elapsed)
		}
		wantBlocks(t, bob, bob.Settle(t, res.NextBatch))
	})
}

// The same since gives the same batch, and no since deletes nothing.
func TestSameSinceSameBatch(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		sendNumbered(t, alice, bob, 0, 150)

		first := bob.Sync(t, Sync{Since: since})
		for range 3 {
			bob.Sync(t, Sync{})
		}
		again := bob.Sync(t, Sync{Since: since})
		if a, b := numbers(t, first.Events()), numbers(t, again.Events()); !slices.Equal(a, b) {
			t.Fatalf("the same since gave %v, then %v", a, b)
		}
		wantNumbers(t, numbers(t, again.Events()), 0, 100)

		// More arrives: the batch of the old since stays what it was.
		sendNumbered(t, alice, bob, 150, 160)
		again = bob.Sync(t, Sync{Since: since})
		wantNumbers(t, numbers(t, again.Events()), 0, 100)
		if first.Position(t) != again.Position(t) {
			t.Errorf("the same since gave position %d, then %d", first.Position(t), again.Position(t))
		}

		// The client goes on with the token of the first response, and later falls back to it.
		rest := bob.Sync(t, Sync{Since: first.NextBatch})
		wantNumbers(t, numbers(t, rest.Events()), 100, 160)
		rest = bob.Sync(t, Sync{Since: first.NextBatch})
		wantNumbers(t, numbers(t, rest.Events()), 100, 160)
	})
}

// A /sync without since shows what waits from the first message on, each time.
func TestNoSinceDeletesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		sendNumbered(t, alice, bob, 0, 20)
		db := s.OpenDatabase(t)
		for range 3 {
			wantNumbers(t, numbers(t, bob.Sync(t, Sync{}).Events()), 0, 20)
		}
		if n := queued(t, db, bob); n != 20 {
			t.Fatalf("want 20 messages in the database, got %d", n)
		}
	})
}

// A token ahead of the store, from before a backup was restored or forged, neither deletes nor
// hides a message: not one that waits, and not one that comes later.
func TestTokenFromTheFuture(t *testing.T) {
	for name, ahead := range map[string]func(t *testing.T, token string) string{
		"1000000 ahead": func(t *testing.T, token string) string {
			return withPosition(t, token, itoa(position(t, token)+1_000_000))
		},
		"9e18": func(t *testing.T, token string) string { return withPosition(t, token, "9000000000000000000") },
		"max":  func(t *testing.T, token string) string { return withPosition(t, token, "9223372036854775807") },
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				s := SharedServer(t, b)
				alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
				db := s.OpenDatabase(t)

				// Waiting messages.
				sendNumbered(t, alice, bob, 0, 3)
				future := ahead(t, bob.Sync(t, Sync{}).NextBatch)
				for range 2 {
					res := bob.Sync(t, Sync{Since: future, Timeout: longPoll})
					wantNumbers(t, numbers(t, res.Events()), 0, 3)
				}
				if n := queued(t, db, bob); n != 3 {
					t.Fatalf("want 3 messages in the database, got %d", n)
				}
				events, since := bob.Receive(t, "", 3)
				wantNumbers(t, numbers(t, events), 0, 3)
				since = bob.Settle(t, since)

				// Messages that come later, to a /sync that waits with such a token.
				future = ahead(t, since)
				res := duringSync(t, bob, Sync{Since: future, Timeout: longPoll}, func() {
					sendNumbered(t, alice, bob, 3, 5)
				})
				got := numbers(t, res.Events())
				for len(got) < 2 {
					res = bob.Sync(t, Sync{Since: res.NextBatch, Timeout: longPoll})
					got = append(got, numbers(t, res.Events())...)
				}
				wantNumbers(t, got, 3, 5)

				// The chain goes on from there as any other.
				since = bob.Settle(t, res.NextBatch)
				sendNumbered(t, alice, bob, 5, 7)
				events, since = bob.Receive(t, since, 2)
				wantNumbers(t, numbers(t, events), 5, 7)
				bob.Settle(t, since)
			})
		})
	}
}

// A since that is no token is the client's fault; one from before the beginning is harmless.
func TestMalformedSince(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		sendNumbered(t, alice, bob, 0, 3)
		token := bob.Sync(t, Sync{}).NextBatch
		for _, since := range []string{
			"x", "s", "banana", "1_2_3", "t1_2", "s1_2_x_4", "s1_2_3_",
			withPosition(t, token, "9223372036854775808"), withPosition(t, token, ""), withPosition(t, token, "1e3"),
		} {
			if _, a := bob.TrySync(t.Context(), Sync{Since: since}); a.Status != 400 || a.ErrCode == "" {
				t.Errorf("since %q: want 400 with an errcode, got %v", since, a)
			}
		}
		for _, since := range []string{
			withPosition(t, token, "-1"), withPosition(t, token, "-9223372036854775808"), withPosition(t, token, "0"),
		} {
			res, a := bob.TrySync(t.Context(), Sync{Since: since})
			if res == nil {
				if a.Status != 400 {
					t.Errorf("since %q: want 200 or 400, got %v", since, a)
				}
				continue
			}
			wantNumbers(t, numbers(t, res.Events()), 0, 3)
		}
		if n := queued(t, s.OpenDatabase(t), bob); n != 3 {
			t.Fatalf("want 3 messages in the database, got %d", n)
		}
	})
}

// Positions grow for ever, over restarts and over an emptied queue too: a client's old token
// must never cover a new message.
func TestPositionsNeverGoBack(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		db := s.OpenDatabase(t)
		var last int64
		advance := func(token string, strictly bool) {
			t.Helper()
			now := position(t, token)
			if now < last || strictly && now == last {
				t.Fatalf("the position went from %d to %d", last, now)
			}
			last = now
		}
		since := bob.Sync(t, Sync{}).NextBatch
		advance(since, false)
		for round := range 3 {
			sendNumbered(t, alice, bob, round, round+1)
			var events []Event
			events, since = bob.Receive(t, since, 1)
			wantNumbers(t, numbers(t, events), round, round+1)
			advance(since, true)
			since = bob.Settle(t, since)
			eventually(t, "the queue is empty", func() (bool, any) {
				n := queued(t, db, bob)
				return n == 0, n
			})
			s.Restart(t)
			advance(bob.Sync(t, Sync{}).NextBatch, false)
			since = bob.Settle(t, since)
			advance(since, false)
		}
		wantBlocks(t, bob, since)
	})
}

// sendNumbered sends the messages from..to-1, each in a request of its own.
func sendNumbered(t *testing.T, from, to *Client, first, end int) {
	t.Helper()
	for n := first; n < end; n++ {
		from.Send(t, "m.test", To(object{"n": n}, to))
	}
}

// wantBlocks fails the test unless a /sync with the token waits for its whole timeout and then
// brings nothing.
func wantBlocks(t *testing.T, c *Client, since string) {
	t.Helper()
	res, a := c.pastNews(t.Context(), Sync{Since: since, Timeout: shortPoll})
	if res == nil {
		t.Fatalf("want 200, got %v", a)
	}
	if len(res.Events()) > 0 {
		t.Fatalf("want no messages, got %s", describe(res.Events()))
	}
	if res.Elapsed < shortPoll {
		t.Errorf("/sync came back after %s of its %s without a message", res.Elapsed, shortPoll)
	}
}
