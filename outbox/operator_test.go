package outbox_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// setAside has one message, m, refused for the last time.
func (f *fixture) setAside() {
	f.Helper()
	f.refuseOne()
	for _, pause := range outbox.Pauses {
		f.clock.advance(pause)
		f.must(f.send())
	}
	f.remote.on(nil)
	f.wantForgotten()
}

func (f *fixture) kept() (refused, setAside int) {
	f.Helper()
	line, err := f.real.Line(f.ctx, there)
	f.must(err)
	return line.Refused, line.SetAside
}

// What was set aside for good is rung for at once, and arrives.
func TestRetryOfWhatWasSetAside(t *testing.T) {
	for name, retry := range map[string]func(f *fixture) (int, error){
		"all": func(f *fixture) (int, error) { return f.Retry(f.ctx, there) },
		"one": func(f *fixture) (int, error) {
			aside, err := f.real.Aside(f.ctx, there, 0, 1)
			f.must(err)
			return f.RetryOne(f.ctx, there, aside[0].Position)
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				f.setAside()
				f.host.change(func() {
					f.host.givenUp[there] = true
					f.host.onReach = func(context.Context, string) error { return errNetwork }
				})
				rings := f.host.rung(there)
				n, err := retry(f)
				f.must(err)
				f.wantRings(there, rings+1)
				if n != 1 || f.host.timesRevived() != 1 {
					t.Errorf("%d are sent again, revived %d times", n, f.host.timesRevived())
				}
				f.must(f.send())
				f.wantArrived([]string{"m"})
				f.wantForgotten()
			})
		})
	}
}

// Refused once more, it is set aside again: the pauses are over.
func TestRetryIsRefusedAgain(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.setAside()
	f.remote.refuses(400, "m")
	_, err := f.Retry(f.ctx, there)
	f.must(err)
	f.must(f.send())
	if refused, setAside := f.kept(); refused != 0 || setAside != 1 {
		t.Errorf("%d are to be sent again, %d are set aside", refused, setAside)
	}
	f.wantForgotten()
}

func TestRetryOfNothing(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.refuseOne()
	rings := f.host.rung(there)
	if n, err := f.RetryOne(f.ctx, there, math.MaxInt64); n != 0 || err != nil || f.host.timesRevived() != 0 {
		t.Errorf("%d, %v, revived %d times", n, err, f.host.timesRevived())
	}
	if n, err := f.Retry(f.ctx, "stranger.org"); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	f.settle()
	if got := f.host.rung(there) + f.host.rung("stranger.org"); got != rings || f.Remembered() != 1 {
		t.Errorf("rung %d times for nothing, %d are remembered", got-rings, f.Remembered())
	}
}

// A destination that can't be reached is left alone between two looks, but not when an operator says so.
func TestRetryOfADestinationThatIsLeftAlone(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.givenUp[there] = true
	f.host.onReach = func(context.Context, string) error { return errNetwork }
	ids := f.add(edu(there, "m"))
	f.wantRings(there, 0)
	n, err := f.Retry(f.ctx, there)
	f.must(err)
	f.wantRings(there, 1)
	if n != 0 {
		t.Errorf("%d are sent again", n)
	}
	f.must(f.send())
	f.wantArrived(ids)
}

// A look that is under way when an operator asks for a retry does not have the last word.
func TestRetryDuringALook(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.givenUp[there] = true
	asked, release := make(chan struct{}), make(chan struct{})
	f.host.onReach = func(context.Context, string) error {
		close(asked)
		<-release
		return errNetwork
	}
	f.add(edu(there, "m"))
	<-asked
	_, err := f.Retry(f.ctx, there)
	f.must(err)
	close(release)
	f.wantRings(there, 1)
}

// A call of Send that began before knows nothing of it, and leaves it to the next.
func TestRetryDuringASend(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.setAside()
		f.add(edu(there, "n"))
		f.settle()
		rings := f.host.rung(there)
		release := make(chan struct{})
		sent := f.blocked(release)
		_, err := f.Retry(f.ctx, there)
		f.must(err)
		f.remote.on(nil)
		close(release)
		f.must(<-sent)
		f.wantRings(there, rings+1)
		f.must(f.send())
		f.wantArrived([]string{"n", "m"})
		f.wantForgotten()
	})
}

func TestDiscard(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		first, second := edu(there, "first"), edu(there, "second")
		f.add(first, second, edu(there, "other"))
		f.remote.refuses(400, "first", "second")
		f.must(f.send())
		aside := f.aside(there)
		if len(aside) != 2 || f.Destinations() != 1 {
			t.Fatalf("%+v", aside)
		}
		gone, err := f.Discard(f.ctx, there, aside[0].Position)
		f.must(err)
		if len(gone) != 1 || gone[0].MessageID != aside[0].MessageID || gone[0].Content != nil || f.Destinations() != 1 {
			t.Errorf("%+v", gone)
		}
		if gone, err = f.Discard(f.ctx, there, 0); err != nil || len(gone) != 1 {
			t.Errorf("%+v, %v", gone, err)
		}
		f.wantForgotten()
		rings := f.host.rung(there)
		f.clock.advance(24 * time.Hour)
		f.wantRings(there, rings)
		f.wantArrived([]string{"other"})
		if gone, err = f.Discard(f.ctx, there, 0); err != nil || len(gone) != 0 || f.Remembered() != 0 {
			t.Errorf("%+v, %v, %d are remembered", gone, err, f.Remembered())
		}
	})
}

// cutOff is an Aside of which a call for everything changes the first EDU alone, and then fails.
type cutOff struct {
	outbox.Aside
	first types.Position
}

func (a cutOff) Readmit(ctx context.Context, destination string, _ types.Position, at time.Time) (int, error) {
	n, err := a.Aside.Readmit(ctx, destination, a.first, at)
	return n, errors.Join(err, faulty.ErrLost)
}

func (a cutOff) Discard(ctx context.Context, destination string, _ types.Position) ([]storage.Refusal, error) {
	gone, err := a.Aside.Discard(ctx, destination, a.first)
	return gone, errors.Join(err, faulty.ErrLost)
}

// setAsideTwo has first and second refused for the last time, and what is changed of them cut off after first.
func (f *fixture) setAsideTwo() {
	f.Helper()
	f.start()
	f.add(edu(there, "first"), edu(there, "second"), edu(there, "other"))
	f.remote.refuses(400, "first", "second")
	f.must(f.send())
	for _, pause := range outbox.Pauses {
		f.clock.advance(pause)
		f.must(f.send())
	}
	f.remote.on(nil)
	f.wantForgotten()
	aside, err := f.real.Aside(f.ctx, there, 0, 2)
	f.must(err)
	f.Aside = cutOff{f.real, aside[0].Position}
}

// What a retry has readmitted before it failed is sent again, and not only after the next start.
func TestRetryThatIsCutOff(t *testing.T) {
	each(t, func(f *fixture) {
		f.setAsideTwo()
		rings := f.host.rung(there)
		if n, err := f.Retry(f.ctx, there); n != 1 || !errors.Is(err, faulty.ErrLost) || f.host.timesRevived() != 1 {
			t.Errorf("%d, %v, revived %d times", n, err, f.host.timesRevived())
		}
		f.wantRings(there, rings+1)
		f.must(f.send())
		f.wantArrived([]string{"other", "first"})
		f.wantForgotten()
	})
}

// What a discard has deleted before it failed is traced, and nothing else.
func TestDiscardThatIsCutOff(t *testing.T) {
	each(t, func(f *fixture) {
		f.setAsideTwo()
		gone, err := f.Discard(f.ctx, there, 0)
		if len(gone) != 1 || gone[0].MessageID != "first" || !errors.Is(err, faulty.ErrLost) {
			t.Errorf("%+v, %v", gone, err)
		}
		if _, setAside := f.kept(); setAside != 1 {
			t.Errorf("%d are set aside, want second", setAside)
		}
		records := f.traced.Records()
		if r := records[len(records)-1]; r.Step != trace.Dropped || r.EDUID != "first" || records[len(records)-2].Step == trace.Dropped {
			t.Errorf("the last steps are %+v", records[len(records)-2:])
		}
		f.wantForgotten()
	})
}

// What is discarded while it is sent again does not come back when it is refused again.
func TestDiscardDuringARetry(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.refuseOne()
		f.clock.advance(outbox.Pauses[0])
		discarded := false
		f.remote.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
			if len(idsOf(t)) == 0 {
				return nil
			}
			if !discarded {
				discarded = true
				gone, err := f.Discard(f.ctx, there, 0)
				f.must(err)
				if len(gone) != 1 {
					f.Errorf("%+v", gone)
				}
			}
			return answer(400)
		})
		f.must(f.send())
		if refused, setAside := f.kept(); !discarded || refused+setAside != 0 {
			t.Errorf("%d are to be sent again, %d are set aside", refused, setAside)
		}
		if f.outcomes[outbox.Refused] != 1 || f.outcomes[outbox.SetAside] != 0 {
			t.Errorf("observed: %v, want the refusal before", f.outcomes)
		}
		f.wantForgotten()
	})
}

func TestStateTellsTheLastFailure(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.host.onReach = func(context.Context, string) error { return errors.New("no such host") }
	if s := f.State(there); s.Failure != nil || s.GivenUp || !s.Until.IsZero() {
		t.Errorf("of an unknown destination: %+v", s)
	}
	f.add(edu(there, "m"))
	f.settle()
	f.remote.fails(answer(503))
	_ = f.send()
	if s := f.State(there); s.Failure == nil || s.Failure.Answer != (outbox.Answer{Status: 503, ErrCode: "M_TEST"}) || !s.Failure.At.Equal(f.clock.Now()) {
		t.Errorf("after a transaction: %+v", s.Failure)
	}
	f.host.change(func() { f.host.givenUp[there] = true })
	f.clock.advance(outbox.LookPause)
	f.settle()
	if s := f.State(there); s.Failure == nil || s.Failure.Error != "no such host" || !s.GivenUp {
		t.Errorf("after a look: %+v", s.Failure)
	}
	f.remote.refuses(400, "m")
	f.must(f.send()) // one of the transactions of which succeeded
	f.remote.on(nil)
	f.must(f.send(typing(1)))
	if s := f.State(there); s.Failure != nil {
		t.Errorf("after a transaction that succeeded: %+v", s.Failure)
	}
	f.clock.advance(outbox.Pauses[0])
	f.must(f.send())
	f.wantForgotten()
}
