package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// The server is killed while it hands messages to its federation sender again and again. After each restart
// that sender still hears of new ones at once: a message to a server that nothing was sent to yet arrives.
func TestKilledWhileSendingToMany(t *testing.T) {
	const kills, promised = 5, 2 * contactRecovery
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		alice := Register(t, here, "alice")
		remotes := make([]*FakeRemote, 8)
		for i := range remotes {
			remotes[i] = NewFakeRemote(t, here)
		}
		for range kills {
			fresh := NewFakeRemote(t, here)
			sendUntilKilled(t, here, remotes)
			here.MustStart(t)
			start := time.Now()
			sendNumbered(t, alice, fresh.Device("bob", "FIRST"), 0, 1)
			fresh.WantNumbers(t, 1, promised)
			t.Logf("after the kill a message took %s", time.Since(start).Round(time.Millisecond))
		}
	})
}

// sendUntilKilled sends to each remote, one message after the other arrived, and kills the server amid it.
func sendUntilKilled(t *testing.T, s *Server, remotes []*FakeRemote) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wait sync.WaitGroup
	for _, r := range remotes {
		from, before := Register(t, s, "sender"), len(r.Messages())
		wait.Go(func() {
			for n := before; ctx.Err() == nil; n = len(r.Messages()) {
				m := Messages{r.User("bob"): {id.DeviceID("FIRST"): object{"n": n}}}
				if a := from.Put(ctx, "m.test", unique("txn"), m.Body()); a.Err != nil {
					return
				}
				for ctx.Err() == nil && len(r.Messages()) == n {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	for _, r := range remotes {
		r.AwaitMore(t, 20)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	cancel()
	wait.Wait()
}
