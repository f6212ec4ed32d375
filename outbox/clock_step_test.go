package outbox_test

import (
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// What was refused while the clock was far ahead is not left aside until then, once the clock is right; it is tried once at a time all the same.
func TestRefusedByAClockThatWasAhead(t *testing.T) {
	for name, restart := range map[string]bool{"one process": false, "restart": true} {
		t.Run(name, func(t *testing.T) {
			each(t, func(f *fixture) {
				const ahead = 1000 * time.Hour
				f.start()
				f.clock.advance(ahead)
				f.refuseOne()
				rings := f.host.rung(there)
				f.clock.advance(-ahead)
				if restart {
					f.restart()
				}
				f.settle()
				if got := f.host.rung(there); got != rings+1 {
					t.Fatalf("rung %d times after the clock was set back, want once", got-rings)
				}
				f.must(f.send())
				if last := f.store.refused()[len(f.store.refused())-1]; last.Attempts != 2 || !last.RetryAt.Equal(f.clock.Now().Add(outbox.Pauses[1])) {
					t.Fatalf("recorded: %+v", last)
				}
				f.wantRungAfter(outbox.Pauses[1])
				f.remote.on(nil)
				f.must(f.send())
				f.wantArrived([]string{"m"})
				f.wantForgotten()
			})
		})
	}
}

// A clock that is set back by less than the longest pause prolongs a pause by as much, and breaks nothing.
func TestClockSetBackWhileOneStandsAside(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.refuseOne()
		f.clock.advance(-time.Hour)
		f.restart()
		f.wantRungAfter(time.Hour + outbox.Pauses[0])
		f.remote.on(nil)
		f.must(f.send())
		f.wantArrived([]string{"m"})
		f.wantForgotten()
	})
}
