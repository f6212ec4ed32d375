package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func (f *fixture) wantRings(destination string, want int) {
	f.Helper()
	f.settle()
	if got := f.host.rung(destination); got != want {
		f.Fatalf("rung %d times for %s, want %d", got, destination, want)
	}
}

func TestRingsAtStart(t *testing.T) {
	each(t, func(f *fixture) {
		f.commit(edus(there, "m", 3))
		f.commit(edus("elsewhere.org", "m", 3))
		f.start()
		f.wantRings(there, 1)
		f.wantRings("elsewhere.org", 1)
		if f.Destinations() != 2 {
			t.Errorf("something waits for %d destinations", f.Destinations())
		}
	})
}

func TestRingsOnceForManyEDUs(t *testing.T) {
	f := onSQLite(t)
	f.start()
	for i := range 20 {
		f.add(edus(there, string(rune('a'+i)), 1)...)
		f.wantRings(there, 1)
	}
	f.must(f.send())
	f.wantRings(there, 1)
	f.add(edu(there, "again"))
	f.wantRings(there, 2)
}

// However long a ring takes, there is no second beside it.
func TestRingsOneAtATime(t *testing.T) {
	f := onSQLite(t)
	f.start()
	rang, release := make(chan struct{}, 9), make(chan struct{})
	f.host.onRing = func(context.Context, string) error {
		rang <- struct{}{}
		<-release
		return nil
	}
	f.add(edu(there, "a"))
	<-rang
	for range 5 {
		f.clock.advance(outbox.MaxPatience)
		f.add(edu(there, f.clock.Now().String()))
		f.must(f.Send(f.ctx, f.transaction("elsewhere.org", nil), f.remote.deliver)) // wakes the watch, too
	}
	f.must(f.send()) // heard before it has returned
	f.add(edu(there, "b"))
	if got := f.host.rung(there); got != 1 {
		t.Errorf("rung %d times", got)
	}
	close(release)
	f.wantRings(there, 2)
	if f.host.most != 1 {
		t.Errorf("%d rings at a time", f.host.most)
	}
}

func TestRingFails(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.onRing = func(context.Context, string) error { return errors.New("not ready") }
	f.add(edu(there, "a"))
	f.settle()
	for range 5 {
		f.wantRungAfter(outbox.Tick)
	}
	f.host.change(func() { f.host.onRing = nil })
	f.wantRungAfter(outbox.Tick)
	f.wantRungAfter(outbox.Patience)
	if f.host.timesAsked(there) != 1 {
		t.Errorf("the destination was asked %d times", f.host.timesAsked(there))
	}
}

// The host's queue may be stuck (see Revive), or a ring be lost.
func TestRingsAgainWithGrowingPatience(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "a"))
	f.settle()
	for i, pause := range []time.Duration{5, 10, 20, 30, 30, 30, 30} {
		f.wantRungAfter(pause * time.Second)
		if got := f.host.timesRevived(); got != i+1 {
			t.Errorf("revived %d times, want %d", got, i+1)
		}
	}
	f.add(edus(there, "b", 150)...)
	f.remote.on(failAfterOne())
	f.must(f.send(typing(1))) // heard, but it leaves some
	f.settle()
	f.wantRungAfter(outbox.Patience) // it starts anew
}

func TestRingsNobodyDuringASend(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "a"))
	f.wantRings(there, 1)
	release := make(chan struct{})
	sent := f.blocked(release)
	for range 3 {
		f.clock.advance(time.Hour)
		f.add(edu(there, f.clock.Now().String()))
		f.wantRings(there, 1)
	}
	close(release)
	f.must(<-sent)
	f.wantRings(there, 2) // the drain time is over
}

// Nobody waits for the next tick of the watch.
func TestWakesTheWatch(t *testing.T) {
	f := onSQLite(t) // which is not started: nothing takes the token away
	if f.Woken() {
		t.Error("the watch is woken by nothing")
	}
	f.Added([]storage.EDU{edu(there, "a")})
	if !f.Woken() {
		t.Error("the watch is not woken by an EDU")
	}
}

func TestRingsNobodyWithoutEDUs(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.Seen("stranger.org")
	f.remote.fails(errNetwork)
	_ = f.send(typing(1))
	f.remote.on(nil)
	f.must(f.sendTransaction(f.transaction("other.org", nil, typing(1))))
	f.add(edu(there, "a"))
	f.settle()
	f.must(f.send())
	rings := f.host.rung(there)
	for range 10 {
		f.clock.advance(time.Hour)
		f.Seen(there)
		f.Seen("other.org")
		f.settle()
	}
	if got := f.host.rung(there) + f.host.rung("stranger.org") + f.host.rung("other.org"); got != rings {
		t.Errorf("rung %d times for nothing", got-rings)
	}
	if f.host.timesAsked("stranger.org") > 0 {
		t.Error("a server for which nothing waits was asked")
	}
	f.wantForgotten()
}

// The host tries by itself before long: it is left alone with it.
func TestWaitsForTheHostsNextAttempt(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.until[there] = f.clock.Now().Add(outbox.Soon - time.Second)
	f.add(edu(there, "a"))
	f.wantRings(there, 0)
	f.clock.advance(outbox.Soon - time.Second)
	f.wantRings(there, 0)
	if f.host.timesAsked(there) != 0 {
		t.Error("the destination was asked although the host will try by itself")
	}
	f.clock.advance(outbox.Tick)
	f.wantRings(there, 1)
}

// The host leaves it alone for long, or for ever: the destination is asked, and when it answers the host is told.
func TestAsksForTheHost(t *testing.T) {
	for name, change := range map[string]func(f *fixture){
		"long backoff": func(f *fixture) { f.host.until[there] = f.clock.Now().Add(time.Hour) },
		"given up":     func(f *fixture) { f.host.givenUp[there] = true },
	} {
		t.Run(name, func(t *testing.T) {
			f := onSQLite(t)
			f.commit(edus(there, "m", 3))
			change(f)
			f.host.onReach = func(context.Context, string) error { return errNetwork }
			f.start()
			f.settle()
			for i := range 5 {
				if got := f.host.timesAsked(there); got != i+1 {
					t.Fatalf("asked %d times, want %d", got, i+1)
				}
				f.clock.advance(outbox.LookPause - time.Millisecond)
				f.settle()
				if got := f.host.timesAsked(there); got != i+1 {
					t.Fatalf("asked before the pause was over")
				}
				f.clock.advance(time.Millisecond)
				f.settle()
			}
			if f.host.rung(there) != 0 || f.host.timesRevived() != 0 {
				t.Error("rung for a destination that does not answer")
			}
			f.host.change(func() { f.host.onReach = nil })
			f.clock.advance(outbox.LookPause)
			f.wantRings(there, 1)
			if f.host.timesRevived() != 1 {
				t.Errorf("revived %d times", f.host.timesRevived())
			}
			f.must(f.send())
			f.wantForgotten()
		})
	}
}

// The host has kept the doorbell that failed: reviving it is enough, unless that goes unheard.
func TestRevivesTheDoorbellThatFailed(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	f.remote.fails(errNetwork)
	f.host.change(func() { f.host.givenUp[there] = true })
	_ = f.send()
	f.clock.advance(outbox.Tick)
	f.wantRings(there, 1)
	if f.host.timesRevived() != 1 {
		t.Errorf("revived %d times", f.host.timesRevived())
	}
	f.wantRungAfter(outbox.Patience)
	if f.host.timesRevived() != 2 {
		t.Errorf("revived %d times", f.host.timesRevived())
	}
}

// Without a doorbell in the transaction that failed there is none to come back to.
func TestRingsAfterAFailureWithoutADoorbell(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.remote.fails(errNetwork)
	part := f.transaction(there, nil, typing(1))
	part.EDUs = part.EDUs[1:]
	_ = f.sendTransaction(part)
	f.add(edu(there, "m"))
	f.clock.advance(outbox.Tick)
	f.wantRings(there, 1)
}

func TestAHintIsFollowedAtOnce(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.givenUp[there] = true
	f.host.onReach = func(context.Context, string) error { return errNetwork }
	f.add(edu(there, "m"))
	f.settle()
	asked := f.host.timesAsked(there)
	f.clock.advance(outbox.HintPause)
	for range 100 {
		f.Seen(there)
		f.settle()
	}
	if got := f.host.timesAsked(there); got != asked+1 {
		t.Fatalf("asked %d times after a hundred hints, want once", got-asked)
	}
	f.clock.advance(outbox.HintPause - time.Millisecond)
	f.Seen(there)
	f.settle()
	if got := f.host.timesAsked(there); got != asked+1 {
		t.Fatal("asked again before the pause was over")
	}
	f.clock.advance(time.Millisecond)
	f.settle()
	if got := f.host.timesAsked(there); got != asked+2 {
		t.Fatalf("asked %d times, want once more while the hint is young", got-asked)
	}
	f.host.change(func() { f.host.onReach = nil })
	f.clock.advance(outbox.HintPause)
	f.wantRings(there, 1)
}

func TestAHintGrowsOld(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.givenUp[there] = true
	f.host.onReach = func(context.Context, string) error { return errNetwork }
	f.add(edu(there, "m"))
	f.settle()
	f.clock.advance(outbox.HintPause)
	f.Seen(there)
	f.settle()
	for range 2 * outbox.HintLife / outbox.HintPause {
		f.clock.advance(outbox.HintPause)
		f.settle()
	}
	asked := f.host.timesAsked(there)
	if limit := int(outbox.HintLife/outbox.HintPause) + 4; asked > limit {
		t.Errorf("asked %d times, want %d at the most", asked, limit)
	}
	f.clock.advance(outbox.HintPause)
	f.settle()
	if f.host.timesAsked(there) != asked {
		t.Error("the hint is still followed")
	}
}

// A hint while the host waits for its own next attempt is worth asking, too.
func TestAHintDuringABackoff(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.until[there] = f.clock.Now().Add(outbox.Soon - time.Second)
	f.add(edu(there, "m"))
	f.wantRings(there, 0)
	f.clock.advance(outbox.HintPause)
	f.Seen(there)
	f.wantRings(there, 1)
	if f.host.timesRevived() != 1 || f.host.timesAsked(there) != 1 {
		t.Errorf("asked %d times, revived %d times", f.host.timesAsked(there), f.host.timesRevived())
	}
}

// The request came while we were asking in vain.
func TestAHintWhileAsking(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.givenUp[there] = true
	f.host.onReach = func(context.Context, string) error {
		f.clock.advance(outbox.HintPause)
		f.Seen(there)
		return errNetwork
	}
	f.add(edu(there, "m"))
	f.waitFor("the destination was asked", func() bool { return f.host.timesAsked(there) == 1 })
	f.settle() // after the request
	f.host.change(func() { f.host.onReach = nil })
	f.clock.advance(outbox.HintPause)
	f.wantRings(there, 1)
}

// A ring went unheard and the destination does not answer: a hint counts all the same.
func TestAHintAfterAnUnheardRing(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	f.host.change(func() { f.host.onReach = func(context.Context, string) error { return errNetwork } })
	f.clock.advance(outbox.Patience)
	f.wantRings(there, 1)
	f.host.change(func() { f.host.onReach = nil })
	f.clock.advance(outbox.HintPause)
	f.Seen(there)
	f.wantRings(there, 2)
}

// The host got through by itself while the destination was asked: there is nothing to ring for.
func TestSendComesWhileAsking(t *testing.T) {
	for name, answer := range map[string]error{"answers": nil, "does not answer": errNetwork} {
		t.Run(name, func(t *testing.T) {
			f := onSQLite(t)
			f.start()
			f.host.givenUp[there] = true
			f.host.onReach = func(context.Context, string) error {
				if err := f.send(typing(1)); err != nil {
					t.Error(err)
				}
				return answer
			}
			f.add(edu(there, "m"))
			f.waitFor("the EDU was sent", func() bool { return len(f.remote.got()) == 1 })
			f.wantRings(there, 0)
			f.wantForgotten()
			f.host.change(func() { f.host.givenUp[there] = false })
			f.add(edu(there, "n"))
			f.wantRings(there, 1)
		})
	}
}

// Reviving the host has it send at once.
func TestSendComesWhileReviving(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	f.remote.fails(errNetwork)
	_ = f.send()
	f.remote.on(nil)
	f.host.change(func() {
		f.host.givenUp[there] = true
		f.host.onRevive = func(string) {
			if err := f.send(); err != nil {
				t.Error(err)
			}
		}
	})
	f.clock.advance(outbox.Tick)
	f.wantRings(there, 1)
	f.wantArrived([]string{"m"})
	f.wantForgotten()
}

// Not even many destinations that can't be reached hold up one that can, neither its first ring nor a later one.
func TestUnreachableDestinationsHoldNobodyUp(t *testing.T) {
	for name, known := range map[string]bool{"as the host says": true, "as a send has shown": false} {
		t.Run(name, func(t *testing.T) {
			f := onSQLite(t)
			asking := make(chan struct{})
			defer close(asking)
			f.host.onReach = func(ctx context.Context, _ string) error {
				select {
				case <-asking:
				case <-ctx.Done():
				}
				return errNetwork
			}
			f.start()
			f.remote.fails(errNetwork)
			for i := range 2 * outbox.AskedAtOnce {
				name := string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".example.org"
				f.host.change(func() { f.host.givenUp[name] = true })
				f.add(edu(name, "m"))
				if !known {
					_ = f.sendTransaction(f.transaction(name, nil))
				}
			}
			f.clock.advance(outbox.Tick)
			f.waitFor("as many are asked as may be", func() bool { return f.host.askedOfAll() >= outbox.AskedAtOnce })
			f.remote.on(nil)
			for i := range 3 {
				f.add(edu(there, string(rune('a'+i))))
				f.waitFor("the reachable one is rung for", func() bool { return f.host.rung(there) == i+1 })
				f.must(f.send())
			}
			if got := f.host.askedOfAll(); got != outbox.AskedAtOnce {
				t.Errorf("%d are asked at once", got)
			}
		})
	}
}

// A user may write to any number of servers that do not exist.
func TestAsksFewInASecond(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.change(func() { f.host.onReach = func(context.Context, string) error { return errNetwork } })
	var all []storage.EDU
	for i := range 2*outbox.AskedAtOnce + 2*outbox.AskedASecond {
		name := fmt.Sprintf("made-up%d.org", i)
		f.host.change(func() { f.host.givenUp[name] = true })
		all = append(all, edu(name, "m"))
	}
	f.add(all...)
	for want := outbox.AskedAtOnce; want < len(all); want += outbox.AskedASecond {
		f.waitFor("as many are asked as may be", func() bool { return f.host.askedOfAll() >= want })
		f.settlePlaces()
		if got := f.host.askedOfAll(); got != want {
			t.Fatalf("%d were asked, want %d", got, want)
		}
		f.clock.advance(time.Second)
	}
}

// settlePlaces has the watch go around while more wait than may have their turn.
func (f *fixture) settlePlaces() {
	for range 30 {
		f.Wake()
		time.Sleep(time.Millisecond)
	}
}

func (h *host) askedOfAll() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, asked := range h.asked {
		n += asked
	}
	return n
}

// An EDU that comes soon after others goes in the same call, without another ring.
func TestSendLingers(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "a"))
	f.wantRings(there, 1)
	more := []string{"b", "c", "d"}
	f.store.afterWaiting = func(found int) {
		if found == 0 && len(more) > 0 {
			f.add(edu(there, more[0]))
			more = more[1:]
		}
	}
	f.must(f.send(typing(1)))
	f.wantArrived([]string{"a", "b", "c", "d"})
	f.wantRings(there, 1)
	f.wantForgotten()
}

// An EDU that comes while the line is found empty is not overlooked.
func TestAddedDuringASend(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "a"))
	f.wantRings(there, 1)
	late := []string{"b", "c"}
	f.remote.on(func(context.Context, gomatrixserverlib.Transaction) error {
		if len(late) == 2 {
			f.add(edu(there, "b")) // found by the same call
			late = late[1:]
		}
		return nil
	})
	f.store.afterWaiting = func(found int) {
		if found == 0 && len(late) == 1 {
			late = nil
			f.clock.advance(time.Minute) // the call doesn't linger
			f.add(edu(there, "c"))       // after the look that found nothing
		}
	}
	f.must(f.send())
	f.wantArrived([]string{"a", "b"})
	f.wantRings(there, 2)
	f.must(f.send())
	f.wantArrived([]string{"a", "b", "c"})
	f.wantForgotten()
}
