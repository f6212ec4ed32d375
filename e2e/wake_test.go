package e2e

import (
	"slices"
	"testing"
	"time"
)

// A /sync that waits is answered within 100 ms of the sender's 200, at the median of 50.
func TestWakeUpDelay(t *testing.T) {
	const rounds, limit = 50, 100 * time.Millisecond
	onEach(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		delays := make([]time.Duration, 0, rounds)
		for n := range rounds {
			var answered time.Time
			res := duringSync(t, bob, Sync{Since: since, Timeout: longPoll}, func() {
				alice.Send(t, "m.test", To(object{"n": n}, bob))
				answered = time.Now()
			})
			wantNumbers(t, numbers(t, res.Events()), n, n+1)
			// The response may come before the sender's own 200: both follow the commit.
			delays = append(delays, max(0, res.Received.Sub(answered)))
			since = res.NextBatch
		}
		slices.Sort(delays)
		median := delays[rounds/2]
		t.Logf("from the 200 to the end of the /sync response: median %s, 90%% %s, longest %s; all: %v",
			median, delays[rounds*9/10], delays[rounds-1], delays)
		if median > limit {
			t.Errorf("want a median of at most %s, got %s", limit, median)
		}
	})
}
