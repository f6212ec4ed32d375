package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// refuseOne has one message, m, refused and looks that it stands aside.
func (f *fixture) refuseOne() {
	const id = "m"
	f.Helper()
	f.add(edu(there, id))
	f.remote.refuses(400, id)
	f.must(f.send())
	f.settle()
	if aside := f.aside(there); len(aside) != 1 || aside[0].MessageID != id {
		f.Fatalf("aside: %+v", aside)
	}
}

// A refused EDU is rung for when its pause is over, each time a longer one, and in the end set aside with the last
// answer.
func TestRefusedIsTriedAgainAndSetAside(t *testing.T) {
	for name, restart := range map[string]bool{"one process": false, "restarts": true} {
		t.Run(name, func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				f.refuseOne()
				for i, pause := range outbox.Pauses {
					if restart {
						f.restart()
					}
					f.wantRungAfter(pause)
					f.remote.fails(nil)
					f.remote.on(refuseWith(gomatrix.HTTPError{Code: 400, Contents: fmt.Appendf(nil, `{"error":"%d"}`, i)}))
					f.must(f.send())
					last := f.store.refused()[len(f.store.refused())-1]
					if last.Attempts != i+2 || !strings.Contains(last.Answer, fmt.Sprintf(`400 {"error":"%d"}`, i)) {
						t.Fatalf("recorded: %+v", last)
					}
				}
				last := f.store.refused()[len(f.store.refused())-1]
				if !last.RetryAt.IsZero() {
					t.Errorf("recorded: %+v", last)
				}
				if f.outcomes[outbox.SetAside] != 1 {
					t.Errorf("observed: %v", f.outcomes)
				}
				f.wantForgotten()
				rings := f.host.rung(there)
				f.clock.advance(1000 * time.Hour)
				f.settle()
				f.must(f.send())
				f.restart()
				f.settle()
				if f.host.rung(there) != rings || len(f.remote.got()) != 0 || len(f.aside(there)) != 0 {
					t.Error("it is still being tried")
				}
			})
		})
	}
}

// refuseWith refuses transactions that hold messages.
func refuseWith(err error) func(context.Context, gomatrixserverlib.Transaction) error {
	return func(_ context.Context, t gomatrixserverlib.Transaction) error {
		if len(idsOf(t)) > 0 {
			return err
		}
		return nil
	}
}

func TestRefusedIsAcceptedLater(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.refuseOne()
		f.remote.on(nil)
		f.must(f.send(typing(1))) // too early
		if len(f.remote.got()) != 0 {
			t.Error("it was tried before its pause was over")
		}
		f.wantRungAfter(outbox.Pauses[0])
		f.must(f.send())
		f.wantArrived([]string{"m"})
		if len(f.aside(there)) != 0 || f.outcomes[outbox.Sent] != 1 {
			t.Errorf("aside: %+v, observed: %v", f.aside(there), f.outcomes)
		}
		f.wantForgotten()
	})
}

// What waits in line goes before what is tried again, and many that are tried again go in several calls.
func TestManyRefused(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		refused := f.add(edus(there, "r", 2*outbox.RetriedInARow+5)...)
		f.add(edu(there, "x"))
		f.wantRings(there, 1)
		f.remote.refuses(400, refused...)
		f.must(f.send())
		f.remote.on(nil)
		f.clock.advance(outbox.Pauses[0])
		next := f.add(edus(there, "n", 3)...)
		for i := range 3 {
			f.settle()
			if got, want := f.host.rung(there), i+2; got < want {
				t.Errorf("rung %d times, want %d", got, want)
			}
			f.must(f.send())
		}
		f.wantArrived(slices.Concat([]string{"x"}, next, refused))
		f.wantForgotten()
	})
}

// The destination does not answer a retry: that counts for nothing, and the host, which sent nothing else, is told.
func TestRetryMeetsAFailure(t *testing.T) {
	for _, failure := range []error{errNetwork, answer(503), answer(429), answer(500), answer(401)} {
		each(t, func(f *fixture) {
			f.start()
			f.refuseOne()
			f.remote.fails(failure)
			for range 10 {
				f.clock.advance(outbox.Pauses[0])
				if f.send() == nil {
					t.Errorf("%v: the host is not told", failure)
				}
			}
			if aside := f.aside(there); len(aside) != 1 || aside[0].Attempts != 1 {
				t.Errorf("aside: %+v", aside)
			}
			f.remote.on(nil)
			f.clock.advance(outbox.Pauses[0])
			f.must(f.send())
			f.wantArrived([]string{"m"})
		})
	}
}

// The host's part arrived: what is wrong with a retry is not its business.
func TestRetryFailsAfterTheHostsPart(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.refuseOne()
		f.clock.advance(outbox.Pauses[0])
		f.remote.on(failAfterOne())
		f.must(f.send(typing(1)))
		f.settle()
		rings := f.host.rung(there)
		f.clock.advance(outbox.Pauses[0])
		f.settle()
		if f.host.rung(there) != rings+1 {
			t.Error("it is not rung for again")
		}
	})
}

// An EDU at which the destination fails, always, is counted as if it was refused, whatever else goes through.
func TestRetryMeetsTheSameFault(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.add(edu(there, "m"))
		f.remote.refuses(500, "m")
		for range outbox.FailuresAlike {
			_ = f.send()
		}
		f.must(f.send())
		var ids []string
		for i, pause := range outbox.Pauses {
			ids = append(ids, f.add(edu(there, fmt.Sprint("other", i)))...)
			f.must(f.send(typing(1)))
			f.clock.advance(pause)
			f.must(f.send(typing(1)))
		}
		f.wantArrived(ids)
		last := f.store.refused()[len(f.store.refused())-1]
		if last.Attempts != len(outbox.Pauses)+1 || !last.RetryAt.IsZero() {
			t.Errorf("recorded last: %+v", last)
		}
		f.wantForgotten()
	})
}

func TestAnswerIsBounded(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.add(edu(there, "m"))
		f.remote.on(refuseWith(gomatrix.HTTPError{Code: 413, Contents: []byte("<html>\x00" + strings.Repeat("é", 1<<20))}))
		f.must(f.send())
		if n := len(f.store.refused()[0].Answer); n > outbox.MaxAnswerBytes {
			t.Errorf("%d bytes go to the database", n)
		}
		got := f.aside(there)[0].Answer
		if len(got) > outbox.MaxAnswerBytes+10 || !strings.HasPrefix(got, "413 <html>") {
			t.Errorf("%d bytes are kept: %.100q", len(got), got)
		}
	})
}
