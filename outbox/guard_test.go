package outbox_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// The context that Start is given is that of the start alone.
func TestRunsAfterItsStart(t *testing.T) {
	f := onSQLite(t)
	ctx, cancel := context.WithCancel(f.ctx)
	f.must(f.Start(ctx))
	cancel()
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	f.must(f.send())
	f.wantArrived([]string{"m"})
}

// Stop returns after the last Send, even if it had to give it up: the database is closed after it.
func TestStopOutlastsWhatItGivesUp(t *testing.T) {
	f := onSQLite(t)
	f.start()
	ids := f.add(edu(there, "m"))
	underway := make(chan struct{})
	f.remote.on(func(ctx context.Context, _ gomatrixserverlib.Transaction) error {
		close(underway)
		<-ctx.Done()
		f.wantLine(there, ids) // takes its time
		return ctx.Err()
	})
	sent := make(chan error, 1)
	go func() { sent <- f.send() }()
	<-underway
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if f.Stop(ctx) == nil || f.Sending(there) != 0 {
		t.Errorf("Stop returned while %d calls of Send were under way", f.Sending(there))
	}
	if err := <-sent; !errors.Is(err, context.Canceled) {
		t.Errorf("Send returned %v", err)
	}
}

// A request of a server's says nothing of our own database: the pause after its failure is not cut short.
func TestAHintWithoutTheDatabase(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	f.clock.advance(outbox.HintPause / 2)
	f.store.fail("Waiting", lostBefore)
	f.must(f.send())
	f.Seen(there)
	f.clock.advance(outbox.HintPause / 2)
	f.wantRings(there, 1)
	f.wantRungAfter(outbox.Tick - outbox.HintPause/2)
}

// A hint after the ring that it led to, or that came with it, is no reason for another.
func TestAHintAfterARing(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.givenUp[there] = true
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	f.Seen(there)
	f.wantRungAfter(outbox.Patience)
}

// Nobody waits for the next tick of the watch after a hint, or after an operator's call.
func TestAHintWakesTheWatch(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	f.settle()
	f.remote.fails(errNetwork)
	if f.send() == nil {
		t.Error("Send returned no error")
	}
	f.must(f.Stop(f.ctx)) // nothing takes the token away
	f.Woken()
	f.Seen(there)
	if !f.Woken() {
		t.Error("the watch is not woken by a hint")
	}
	_, err := f.Retry(f.ctx, there)
	f.must(err)
	if !f.Woken() {
		t.Error("the watch is not woken by a retry")
	}
}

// The watch goes around without being woken.
func TestTheWatchTicks(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.onRing = func(context.Context, string) error { return errNetwork }
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	f.clock.advance(outbox.Tick)
	for f.host.rung(there) < 2 {
		if f.ctx.Err() != nil {
			t.Fatal("it is not rung for again")
		}
		time.Sleep(time.Millisecond)
	}
}

// What the host's own events have met is remembered, though nothing of ours waited: the host is given a tick to leave the
// destination alone, which is then asked before it is rung for.
func TestRemembersWhatTheHostsPartMet(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.remote.fails(errNetwork)
	part := f.transaction(there, nil, typing(1))
	part.EDUs = part.EDUs[1:]
	if f.sendTransaction(part) == nil {
		t.Error("Send returned no error")
	}
	f.add(edu(there, "m"))
	f.wantRings(there, 0)
	if got := f.host.timesAsked(there); got != 0 {
		t.Errorf("asked %d times at once", got)
	}
	f.wantRungAfter(outbox.Tick)
	if got := f.host.timesAsked(there); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
}

// The host's part that has to wait for a transaction of ours goes all the same when the time is over, or our rows can't be deleted.
func TestTheHostsPartIsNotLeftBehind(t *testing.T) {
	for name, change := range map[string]func(f *fixture){
		"slow":     func(f *fixture) { f.remote.slow(f.clock, 2*outbox.DrainFor) },
		"database": func(f *fixture) { f.store.fail("Sent", lostBefore) },
	} {
		t.Run(name, func(t *testing.T) {
			f := onSQLite(t)
			f.start()
			ids := f.add(edus(there, "m", 3)...)
			change(f)
			part := f.transaction(there, []string{`{}`}, typing(1))
			part.Origin = "other.example.org" // does not fit beside ours
			f.must(f.sendTransaction(part))
			f.wantArrived(ids)
			if took := f.remote.took(); len(took) != 2 || len(took[1].PDUs) != 1 || len(took[1].EDUs) != 1 {
				t.Errorf("the transactions are %+v", took)
			}
		})
	}
}

// A destination that takes nothing of ours takes the host's part, once.
func TestRefusesAllOfOurs(t *testing.T) {
	f := onSQLite(t)
	f.start()
	ids := f.add(edus(there, "m", 5)...)
	f.remote.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
		if slices.ContainsFunc(t.EDUs, func(e gomatrixserverlib.EDU) bool { return e.Type == spec.MDirectToDevice }) {
			return answer(403)
		}
		return nil
	})
	f.must(f.send(typing(1)))
	f.wantLine(there, ids)
	if took := f.remote.took(); len(took) != 1 || len(took[0].EDUs) != 1 || len(f.store.refused()) != 0 {
		t.Errorf("the transactions are %+v, refused: %+v", took, f.store.refused())
	}
}

// A destination that has the ID of a transaction drops what comes under it again: an ID is done with after a success, and
// never that of other PDUs.
func TestSendNamesNothingTwice(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.refuseOne() // so that the destination is remembered
	f.remote.attempts = nil
	want := 0
	for _, pdu := range []string{`{"n":1}`, `{"n":2}`} {
		f.remote.fails(errNetwork)
		if f.sendTransaction(f.transaction(there, []string{pdu})) == nil {
			t.Error("Send returned no error")
		}
		want++
	}
	f.remote.on(nil)
	for range 3 { // the first repeats what failed
		f.must(f.sendTransaction(f.transaction(there, []string{`{"n":2}`})))
		f.clock.advance(time.Second)
	}
	want += 2
	ids := make(map[gomatrixserverlib.TransactionID]bool)
	for _, tried := range f.remote.tried() {
		ids[tried.TransactionID] = true
	}
	if len(ids) != want {
		t.Errorf("%d transactions have %d IDs, want %d", len(f.remote.tried()), len(ids), want)
	}
}

// A failure of the host's part alone counts against no message.
func TestFailsAtTheHostsPart(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.remote.fails(answer(500))
	if f.send(typing(1)) == nil {
		t.Error("Send returned no error")
	}
	ids := f.add(edus(there, "m", 3)...)
	for range outbox.FailuresAlike {
		before := len(f.remote.tried())
		if f.send() == nil || len(f.remote.tried()) != before+1 {
			t.Errorf("%d transactions, want 1 that fails", len(f.remote.tried())-before)
		}
	}
	f.wantLine(there, ids)
}

// Nothing is sent again while the line can't be read.
func TestRetryWaitsForTheLine(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.refuseOne()
	f.remote.on(nil)
	f.clock.advance(outbox.Pauses[0])
	f.add(edu(there, "n"))
	f.settle()
	f.store.fail("Waiting", lostBefore)
	f.must(f.send())
	f.wantArrived(nil)
	f.store.heal()
	f.wantRungAfter(outbox.Tick)
	f.must(f.send())
	f.wantArrived([]string{"n", "m"})
	f.wantForgotten()
}

// That the database does not tell what is due next is no fault of the destination's.
func TestRetryWithoutTheNextOne(t *testing.T) {
	f := onSQLite(t)
	f.start()
	refused := f.add(edus(there, "r", outbox.RetriedInARow)...)
	f.add(edu(there, "x"))
	f.remote.refuses(400, refused...)
	f.must(f.send())
	f.clock.advance(outbox.Pauses[0])
	left := outbox.RetriedInARow
	f.remote.on(func(context.Context, gomatrixserverlib.Transaction) error {
		if left--; left == 0 {
			f.store.fail("Refused", lostBefore)
		}
		return nil
	})
	f.must(f.send())
	f.store.heal()
	if left != 0 || len(f.aside(there)) != 0 {
		t.Errorf("%d were not sent again, aside: %+v", left, f.aside(there))
	}
	f.wantRungAfter(outbox.Pauses[0])
	f.must(f.send())
	f.wantForgotten()
}

// Each refused EDU is due in its own time, whether it was refused before the others or after them.
func TestRefusedAreDueInTheirTurn(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.remote.refuses(400, "a", "b", "c")
	refuse := func(id string) {
		f.add(edu(there, id))
		f.must(f.send())
	}
	refuse("a")
	f.clock.advance(outbox.Pauses[0] / 2)
	refuse("b")
	f.wantRungAfter(outbox.Pauses[0] / 2) // a
	f.must(f.send())
	f.wantRungAfter(outbox.Pauses[0] / 2) // b
	f.must(f.send())
	refuse("c")
	f.wantRungAfter(outbox.Pauses[0]) // c, before a and b
}

// What the destination has accepted is taken down even if the host gave up meanwhile.
func TestSendTakesDownWhatArrived(t *testing.T) {
	f := onSQLite(t)
	f.start()
	ids := f.add(edu(there, "m"))
	ctx, cancel := context.WithCancel(f.ctx)
	f.remote.on(func(context.Context, gomatrixserverlib.Transaction) error {
		cancel()
		return nil
	})
	f.must(f.Send(ctx, f.transaction(there, nil), f.remote.deliver))
	f.wantArrived(ids)
	f.wantLine(there, nil)
}

// Only a call that sent something of ours waits for more, and not after the host gave up.
func TestSendLingersForNothing(t *testing.T) {
	f := onSQLite(t)
	f.Linger = 2 * time.Minute // longer than the test may take
	f.start()
	f.must(f.send(typing(1)))
	ctx, cancel := context.WithCancel(f.ctx)
	looks := 0
	f.store.afterWaiting = func(found int) {
		if found > 0 {
			return
		}
		if looks++; looks == 2 { // the first ends with the token of what was sent
			cancel()
		}
	}
	f.add(edu(there, "m"))
	f.must(f.Send(ctx, f.transaction(there, nil), f.remote.deliver))
	if f.ctx.Err() != nil {
		t.Error("it lingered")
	}
}

// Those that did not hear a ring and do not answer hold nobody up.
func TestUnheardRingsHoldNobodyUp(t *testing.T) {
	f := onSQLite(t)
	asking := make(chan struct{})
	defer close(asking)
	f.host.onReach = func(context.Context, string) error {
		<-asking // for longer than it may
		return errNetwork
	}
	f.start()
	var all []storage.EDU
	for i := range 2 * outbox.RungForAtOnce {
		all = append(all, edu(string(rune('a'+i%26))+string(rune('a'+i/26))+".example.org", "m"))
	}
	f.add(all...)
	f.settle()
	f.clock.advance(outbox.Patience)
	f.waitFor("as many are asked as may be", func() bool { return f.host.askedOfAll() >= min(outbox.AskedAtOnce, outbox.RungForAtOnce) })
	f.add(edu(there, "m"))
	f.waitFor("the reachable one is rung for", func() bool { return f.host.rung(there) == 1 })
}

// slowAside does something before it discards.
type slowAside struct {
	outbox.Aside
	before func()
}

func (a *slowAside) Discard(ctx context.Context, destination string, position types.Position) ([]storage.Refusal, error) {
	a.before()
	return a.Aside.Discard(ctx, destination, position)
}

// A destination is remembered while something of its is discarded, or a retry at the same time would know nothing of it.
func TestRemembersWhatIsBeingDiscarded(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.setAside()
	called := false
	f.Aside = &slowAside{f.real, func() {
		called = true
		f.must(f.send(typing(1)))
		f.settle()
		if f.Remembered() != 1 {
			t.Error("the destination is forgotten")
		}
	}}
	if gone, err := f.Discard(f.ctx, there, 0); err != nil || len(gone) != 1 || !called {
		t.Errorf("%+v, %v", gone, err)
	}
	f.wantForgotten()
}

// The host will not try by itself, whatever pause it names: the destination is asked at once.
func TestAsksWhereTheHostHasGivenUp(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.givenUp[there] = true
	f.host.until[there] = f.clock.Now().Add(outbox.Soon - time.Second)
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	if got := f.host.timesAsked(there); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
}

// Rings and questions are bounded in time, and end at once with Stop.
func TestStopEndsRingsAndQuestions(t *testing.T) {
	f := onSQLite(t)
	ended := make(chan error, 2)
	wait := func(ctx context.Context, _ string) error {
		if _, limited := ctx.Deadline(); !limited {
			t.Error("there is no limit to the time of a ring or a question")
		}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	f.host.onRing, f.host.onReach = wait, wait
	f.host.givenUp["away.org"] = true
	f.start()
	f.add(edu(there, "m"), edu("away.org", "m"))
	f.waitFor("it rings and asks", func() bool { return f.host.rung(there) == 1 && f.host.timesAsked("away.org") == 1 })
	f.must(f.Stop(f.ctx))
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	}
}

// An operator's call makes an unheard ring one that was never made.
func TestRetryAfterAnUnheardRing(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	f.wantRings(there, 1)
	_, err := f.Retry(f.ctx, there)
	f.must(err)
	f.wantRings(there, 2)
	if got := f.host.timesAsked(there); got != 0 {
		t.Errorf("asked %d times", got)
	}
}

// A destination that answers a question has not taken anything yet: its failure stands until it does.
func TestStateKeepsTheFailureOfADestinationThatAnswers(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	f.settle()
	f.remote.fails(answer(503))
	if f.send() == nil {
		t.Error("Send returned no error")
	}
	f.clock.advance(outbox.Tick)
	f.settle()
	if s := f.State(there); f.host.timesAsked(there) != 1 || s.Failure == nil || s.Failure.Status != 503 {
		t.Errorf("asked %d times, failure: %+v", f.host.timesAsked(there), s.Failure)
	}
}

func TestWhatIsDiscardedIsTraced(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.refuseOne()
	record := trace.Record{Destination: there, EDUID: "m", Position: f.aside(there)[0].Position}
	refused, dropped := record, record
	refused.Step, dropped.Step, dropped.Reason = trace.Refused, trace.Dropped, trace.Discarded
	f.traced.Want(f, refused)
	_, err := f.Discard(f.ctx, there, 0)
	f.must(err)
	f.traced.Want(f, dropped)
}

// refusedHook does something, once, after it was looked up what was refused.
type refusedHook struct {
	storage.Outbox
	after func()
}

func (h *refusedHook) Refused(ctx context.Context, destination string, by time.Time, limit int) ([]storage.Refusal, error) {
	found, err := h.Outbox.Refused(ctx, destination, by, limit)
	if after := h.after; after != nil {
		h.after = nil
		after()
	}
	return found, err
}

// A call of Send that has something refused while another is discarded has the last word on when to try again.
func TestDiscardDuringASend(t *testing.T) {
	for name, before := range map[string]bool{"begun before": true, "begun meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			f := onSQLite(t)
			f.start()
			f.refuseOne()
			f.add(edu(there, "n"))
			f.settle()
			underway, release, sent := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			first := true
			f.remote.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
				if first {
					first = false
					close(underway)
					<-release
				}
				return refuseWith(answer(400))(nil, t)
			})
			send := func() {
				go func() { sent <- f.send() }()
				<-underway
			}
			f.Store = &refusedHook{f.store, func() {
				if !before {
					send()
				}
				close(release)
				f.must(<-sent)
			}}
			if before {
				send()
			}
			gone, err := f.Discard(f.ctx, there, 0)
			f.must(err)
			if aside := f.aside(there); len(gone) != 1 || len(aside) != 1 || aside[0].MessageID != "n" || f.Destinations() != 1 {
				t.Errorf("discarded: %+v, aside: %+v, remembered: %d", gone, aside, f.Destinations())
			}
			f.wantRungAfter(outbox.Pauses[0])
		})
	}
}

// What is left is remembered even if it can't be looked up when it is due.
func TestDiscardWithoutTheDatabase(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "a"), edu(there, "b"), edu(there, "x"))
	f.remote.refuses(400, "a", "b")
	f.must(f.send())
	f.store.fail("Refused", lostBefore)
	if gone, err := f.Discard(f.ctx, there, f.store.refused()[0].Position); err != nil || len(gone) != 1 {
		t.Errorf("%+v, %v", gone, err)
	}
	f.store.heal()
	f.remote.on(nil)
	f.wantRungAfter(outbox.Pauses[0])
	f.must(f.send())
	f.wantArrived([]string{"x", "b"})
}
