package outbox_test

import (
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

func TestStartNeedsTheDatabase(t *testing.T) {
	f := onSQLite(t)
	f.store.fail("Destinations", lostBefore)
	if f.Start(f.ctx) == nil {
		t.Error("Start returned no error")
	}
	f.store.heal()
	f.start()
}

// What we can't read does not hold up the host's own events.
func TestSendWithoutReading(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 3)...)
		f.store.fail("Waiting", lostBefore)
		f.must(f.sendTransaction(f.transaction(there, []string{`{}`}, typing(1))))
		f.must(f.send()) // no fault of the destination's
		if took := f.remote.took(); len(took) != 1 || len(took[0].PDUs) != 1 || len(took[0].EDUs) != 1 {
			t.Errorf("the transactions are %+v", took)
		}
		f.wantLine(there, ids)
		f.store.heal()
		f.wantRungAfter(outbox.Tick)
		f.must(f.send())
		f.wantArrived(ids)
	})
}

// wantRungAfter waits for a ring that comes when the pause is over and not before.
func (f *fixture) wantRungAfter(pause time.Duration) {
	f.Helper()
	f.settle()
	before := f.host.rung(there)
	f.clock.advance(pause - time.Millisecond)
	f.settle()
	if got := f.host.rung(there); got != before {
		f.Fatalf("rung %d times before %v are over", got-before, pause)
	}
	f.clock.advance(time.Millisecond)
	f.settle()
	if got := f.host.rung(there); got != before+1 {
		f.Fatalf("rung %d times after %v", got-before, pause)
	}
}

// What is delivered and can't be deleted is not delivered again while this process remembers, and its rows go
// as soon as the database allows, without anything being sent.
func TestSendWithoutDeleting(t *testing.T) {
	for name, fault := range map[string]fault{"not done": lostBefore, "answer lost": lostAnswer} {
		t.Run(name, func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				first := f.add(edus(there, "a", 150)...)
				f.store.fail("Sent", fault)
				f.must(f.send(typing(1)))
				f.must(f.send(typing(2)))
				second := f.add(edus(there, "b", 3)...)
				f.must(f.send(typing(3)))
				if n := len(f.remote.took()); n != 3 {
					t.Errorf("%d transactions arrived, want the host's three", n)
				}
				f.wantArrived(first[:99])
				f.store.heal()
				f.wantRungAfter(outbox.Tick)
				f.must(f.send())
				f.wantArrived(append(first, second...))
				f.wantLine(there, nil)
				for id, copies := range f.remote.copies {
					if copies != 1 {
						t.Errorf("%s was delivered %d times", id, copies)
					}
				}
				f.wantForgotten()
			})
		})
	}
}

// The rows alone are left: they are deleted without anything being sent.
func TestSendDeletesLater(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "a", 3)...)
		f.store.fail("Sent", lostBefore)
		f.must(f.send())
		f.wantLine(there, ids)
		f.store.heal()
		f.must(f.send())
		f.wantLine(there, nil)
		if n := len(f.remote.tried()); n != 1 {
			t.Errorf("%d transactions, want 1", n)
		}
		f.wantForgotten()
	})
}

// After a restart they are delivered again, under their message_ids.
func TestSendDeliversAgainAfterARestart(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "a", 3)...)
		f.store.fail("Sent", lostBefore)
		f.must(f.send())
		f.store.heal()
		f.restart()
		f.must(f.send())
		f.wantArrived(ids)
		f.wantLine(there, nil)
	})
}

// An EDU whose refusal can't be taken down stays in line.
func TestSendWithoutRefusing(t *testing.T) {
	for name, fault := range map[string]fault{"not done": lostBefore, "answer lost": lostAnswer} {
		t.Run(name, func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				ids := f.add(edus(there, "m", 5)...)
				f.remote.refuses(400, "m002")
				f.store.fail("Refuse", fault)
				f.must(f.send(typing(1)))
				f.must(f.send())
				if !hostsPartArrived(f) {
					t.Error("the host's part did not arrive")
				}
				f.store.heal()
				f.must(f.send())
				f.wantArrived([]string{ids[0], ids[1], ids[3], ids[4]})
				f.wantLine(there, nil)
				if aside := f.aside(there); len(aside) != 1 || aside[0].MessageID != "m002" {
					t.Errorf("aside: %+v", aside)
				}
			})
		})
	}
}

func hostsPartArrived(f *fixture) bool {
	for _, took := range f.remote.took() {
		if len(took.EDUs) > len(idsOf(took)) && took.EDUs[len(took.EDUs)-1].Type == "m.typing" {
			return true
		}
	}
	return false
}

// The retry of what was refused waits for the database.
func TestRetryWithoutTheDatabase(t *testing.T) {
	for _, method := range []string{"Refused", "Accepted"} {
		t.Run(method, func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				f.add(edu(there, "m"))
				f.remote.refuses(400, "m")
				f.must(f.send())
				f.remote.on(nil)
				f.clock.advance(outbox.Pauses[0])
				f.store.fail(method, lostBefore)
				f.must(f.send())
				if len(f.aside(there)) != 1 || f.Destinations() != 1 {
					t.Errorf("aside: %+v", f.aside(there))
				}
				f.store.heal()
				f.wantRungAfter(outbox.Pauses[0])
				f.must(f.send())
				f.wantArrived([]string{"m"})
				if len(f.aside(there)) != 0 {
					t.Errorf("aside: %+v", f.aside(there))
				}
				f.wantForgotten()
			})
		})
	}
}
