package e2e

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"maunium.net/go/mautrix/id"
)

// What was answered 200 is delivered although the server is killed right after, and the repeat
// of the request after the restart gets its 200 and delivers nothing more.
func TestOneDeliveryAcrossKill(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		txn := unique("txn")
		alice.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
		s.Restart(t)
		alice.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
		alice.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
		wantOne(t, bob, since)

		// Still so after the message was acknowledged, and after another restart.
		s.Restart(t)
		alice.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
		wantOneDelivered(t, alice, bob, since)
	})
}

// Twenty equal requests at once: each gets 200, one is delivered.
func TestOneDeliveryForConcurrentRequests(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		for range 5 {
			since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
			txn, body := unique("txn"), To(object{"n": 0}, bob).Body()
			var start, done sync.WaitGroup
			start.Add(1)
			for range 20 {
				done.Go(func() {
					start.Wait()
					if a := alice.Put(context.Background(), "m.test", txn, body); a.Status != http.StatusOK {
						t.Errorf("want 200, got %v", a)
					}
				})
			}
			start.Done()
			done.Wait()
			if t.Failed() {
				return
			}
			wantOne(t, bob, since)
		}
	})
}

// The event type belongs to the scope of a transaction ID.
func TestTransactionScopeEventType(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		txn := unique("txn")
		for range 2 {
			alice.SendTxn(t, "m.one", txn, To(object{"n": 0}, bob))
			alice.SendTxn(t, "m.two", txn, To(object{"n": 1}, bob))
		}
		events, since := bob.Receive(t, "", 2)
		wantNumbers(t, numbers(t, events), 0, 2)
		if events[0].Type != "m.one" || events[1].Type != "m.two" {
			t.Errorf("want m.one and m.two, got %s", describe(events))
		}
		bob.Settle(t, since)
	})
}

// The scope is the device: a new access token of the same device does not make the message a new
// one, another device of the same user does.
func TestTransactionScopeDevice(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		txn := unique("txn")
		alice.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
		again := alice.Login(t, s, alice.DeviceID)
		if again.DeviceID != alice.DeviceID || again.AccessToken == alice.AccessToken {
			t.Fatal("the login did not give the same device a new token")
		}
		again.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
		wantOne(t, bob, "")

		other := alice.Login(t, s, "OTHER")
		other.SendTxn(t, "m.test", txn, To(object{"n": 1}, bob))
		events, since := bob.Receive(t, "", 2)
		wantNumbers(t, numbers(t, events), 0, 2)
		bob.Settle(t, since)
	})
}

// The repeat of a request is answered as the first was, whatever it says: the first one counts.
func TestRepeatWithOtherContent(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		txn := unique("txn")
		alice.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
		alice.SendTxn(t, "m.test", txn, To(object{"n": 1}, bob, carol))
		wantOne(t, bob, "")
		carol.WantNothing(t, "")
	})
}

// The users of an application service share its token, and each has transaction IDs of its own.
func TestApplicationServiceUsers(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		bob := Register(t, s, "bob")
		one, two := RegisterAppServiceUser(t, s), RegisterAppServiceUser(t, s)
		txn := unique("txn")
		for range 2 {
			one.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
			two.SendTxn(t, "m.test", txn, To(object{"n": 1}, bob))
		}
		events, since := bob.Receive(t, "", 2)
		wantNumbers(t, numbers(t, events), 0, 2)
		if senders := []id.UserID{id.UserID(events[0].Sender), id.UserID(events[1].Sender)}; senders[0] != one.UserID || senders[1] != two.UserID {
			t.Errorf("want the senders %s and %s, got %s", one.UserID, two.UserID, senders)
		}
		bob.Settle(t, since)
	})
}

// wantOne fails the test unless exactly one message waits at the token. It leaves it there.
func wantOne(t *testing.T, c *Client, since string) {
	t.Helper()
	events, next := c.Receive(t, since, 1)
	wantNumbers(t, numbers(t, events), 0, 1)
	// Nothing follows it; the token is not used, so that the message stays.
	if res := c.Sync(t, Sync{Since: since}); len(res.Events()) != 1 || res.NextBatch == "" || position(t, res.NextBatch) < position(t, next) {
		t.Fatalf("want one message again, got %s", describe(res.Events()))
	}
}

// wantOneDelivered acknowledges the one message that waits at the token, and fails the test if
// another one follows: the last message the sender sends now is the next to arrive.
func wantOneDelivered(t *testing.T, from, to *Client, since string) {
	t.Helper()
	events, next := to.Receive(t, since, 1)
	wantNumbers(t, numbers(t, events), 0, 1)
	from.Send(t, "m.test", To(object{"n": 1}, to))
	events, next = to.Receive(t, next, 1)
	wantNumbers(t, numbers(t, events), 1, 2)
	to.Settle(t, next)
}
