package e2e

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sendLarge sends so many numbered messages of 60,000 bytes to a device, through several connections at once.
func sendLarge(t *testing.T, from, to *Client, messages int) *sync.WaitGroup {
	t.Helper()
	filling := strings.Repeat("x", 60_000)
	var next atomic.Int64
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for n := next.Add(1) - 1; n < int64(messages); n = next.Add(1) - 1 {
				if a := from.Put(t.Context(), "m.test", unique("txn"), To(object{"n": n, "a": filling}, to).Body()); a.Status != http.StatusOK {
					t.Errorf("want 200, got %v", a)
					return
				}
			}
		})
	}
	return &group
}

// What waits for a device that never comes is in the database alone: the server takes less memory for it than a part of it has bytes, others'
// messages go on, and if the device comes after all it gets everything. TestLimits has queues with a bound.
func TestDeviceThatNeverSyncs(t *testing.T) {
	const (
		messages = 2500
		contents = messages * 60_000 >> 10 // KiB
		most     = 128 << 10
		// A response has 100 of them, some 6 MiB, and more than once while it is written.
		mostHandingOver = 256 << 10
	)
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, asleep, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		empty := memoryPeak(s.PID())
		group := sendLarge(t, alice, asleep, messages)
		n, slowest := meanwhile(t, carol, "", closedAfter(group), func(n int) { carol.Send(t, "m.test", To(object{"n": n}, carol)) })
		if waiting := queued(t, s.OpenDatabase(t), asleep); waiting != messages {
			t.Errorf("%d messages wait, want %d", waiting, messages)
		}
		grown := wantBounded(t, s, empty, most)
		t.Logf("%d MiB for a device that never syncs took %d MiB more memory; meanwhile %d messages, the slowest in %s",
			contents>>10, grown>>10, n, slowest.Round(time.Millisecond))
		var got []int
		for since := ""; len(got) < messages; {
			res := asleep.Sync(t, Sync{Since: since, Timeout: time.Second})
			if len(res.Events()) == 0 {
				t.Fatalf("got %d messages, want %d", len(got), messages)
			}
			got, since = append(got, numbers(t, res.Events())...), res.NextBatch
		}
		slices.Sort(got) // they were sent side by side
		wantNumbers(t, got, 0, messages)
		t.Logf("with all of it handed over it has taken %d MiB more", wantBounded(t, s, empty, mostHandingOver)>>10)
	})
}

// A client that asks for the same messages again and again, with an old token or with none, has each /sync cost as much as if few
// messages waited for it: the server's memory is bounded, and others' messages go on.
func TestSyncLoopsWithOldTokens(t *testing.T) {
	const (
		few, many = 100, 50_000
		rounds    = 200
		loops     = 8
		most      = 192 << 10 // KiB
		dearest   = 4         // times what a /sync costs with few messages waiting; the measurement itself is to blame for most of it
	)
	onEach(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		db := s.OpenDatabase(t)
		light, heavy, carol := Register(t, s, "light"), Register(t, s, "heavy"), Register(t, s, "carol")
		tokens := map[*Client]string{light: light.Settle(t, ""), heavy: heavy.Settle(t, "")}
		fill(t, db, light, few)
		fill(t, db, heavy, many)
		s.Restart(t) // what was put there by hand is not known to one that runs
		empty := memoryPeak(s.PID())
		took := map[*Client][]time.Duration{}
		for range rounds { // by turns, so that both meet the same machine
			for c, old := range tokens {
				for _, since := range []string{old, ""} {
					res := c.Sync(t, Sync{Since: since})
					wantNumbers(t, numbers(t, res.Events()), 0, few)
					took[c] = append(took[c], res.Elapsed)
				}
			}
		}
		for _, times := range took {
			slices.Sort(times)
		}
		cheap, dear := took[light][rounds], took[heavy][rounds] // of twice as many
		if dear > dearest*cheap {
			t.Errorf("a /sync took %s with %d messages waiting, and %s with %d", dear, many, cheap, few)
		}

		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		var syncs atomic.Int64
		for i := range loops {
			group.Go(func() {
				for ctx.Err() == nil {
					res, a := heavy.TrySync(ctx, Sync{Since: []string{tokens[heavy], ""}[i%2]})
					if ctx.Err() == nil && (res == nil || len(res.Events()) != few) {
						t.Errorf("want 200 with %d messages, got %.300s", few, a)
						return
					}
					syncs.Add(1)
				}
			})
		}
		enough := make(chan struct{})
		go func() {
			for syncs.Load() < 10*rounds && ctx.Err() == nil && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
			close(enough)
		}()
		n, slowest := meanwhile(t, carol, "", enough, func(n int) { carol.Send(t, "m.test", To(object{"n": n}, carol)) })
		cancel()
		group.Wait()
		grown := wantBounded(t, s, empty, most)
		t.Logf("a /sync took %s with %d messages waiting, %s with %d; %d in loops took %d MiB more memory; meanwhile %d messages, the slowest in %s",
			dear, many, cheap, few, syncs.Load(), grown>>10, n, slowest.Round(time.Millisecond))
		if left := queued(t, db, heavy); left != many {
			t.Errorf("%d messages wait, want %d", left, many)
		}
	})
}

// Many requests at once for a queue of large messages make many small responses: the server's memory is bounded, and each message comes once.
func TestLargeMessagesInManyResponses(t *testing.T) {
	const (
		messages, atOnce = 100, 64
		most             = 768 << 10 // KiB
	)
	onEach(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		sendLarge(t, alice, bob, messages).Wait()
		empty := memoryPeak(s.PID())
		var group sync.WaitGroup
		for range atOnce {
			group.Go(func() {
				res, a := bob.TrySync(t.Context(), Sync{})
				if res == nil {
					t.Errorf("want 200, got %.300s", a)
				} else if n := len(res.Events()); n == 0 || n*60_000 > 1<<20 {
					t.Errorf("a response has %d messages of 60,000 bytes", n)
				}
			})
		}
		group.Wait()
		t.Logf("%d requests at once took %d MiB more memory", atOnce, wantBounded(t, s, empty, most)>>10)
		events, since := bob.Receive(t, "", messages)
		bob.Settle(t, since)
		got := numbers(t, events)
		slices.Sort(got) // they were sent side by side
		wantNumbers(t, got, 0, messages)
	})
}
