package e2e

import (
	"testing"
	"time"
)

// What federation brings in reaches the local devices. The remote is an unmodified Dendrite, which the
// same program is without the section. It sends some EDUs twice, each time under another message
// ID, so this test counts no repetitions.
func TestMessagesFromAnotherServerArrive(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true})
		remote := StartServer(t, b, Options{Federation: true, NoSection: true})
		alice, bob := Register(t, remote, "alice"), Register(t, here, "bob")
		second := bob.Login(t, here, "SECOND")
		since, secondSince := bob.Settle(t, ""), second.Settle(t, "")
		const n = 5
		for i := range n {
			alice.Send(t, "org.example.remote", To(object{"n": i}, bob))
		}
		alice.Send(t, "org.example.all", Messages{bob.UserID: {"*": object{"n": n}}})
		receiveNumbers(t, alice, bob, since, 0, 1, 2, 3, 4, n)
		receiveNumbers(t, alice, second, secondSince, n)
	})
}

// receiveNumbers follows next_batch until every number has arrived.
func receiveNumbers(t *testing.T, from, to *Client, since string, want ...int) {
	t.Helper()
	missing := make(map[int]bool)
	for _, number := range want {
		missing[number] = true
	}
	eventually(t, "every message arrives", func() (bool, any) {
		res := to.Sync(t, Sync{Since: since, Timeout: time.Second})
		since = res.NextBatch
		for i, number := range numbers(t, res.Events()) {
			delete(missing, number)
			if sender := res.Events()[i].Sender; sender != from.UserID.String() {
				t.Errorf("the sender is %s, want %s", sender, from.UserID)
			}
		}
		return len(missing) == 0, missing
	})
}
