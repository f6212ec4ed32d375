package outbox_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// What is remembered of a destination goes with the last EDU for it.
func TestForgetsDestinations(t *testing.T) {
	f := onSQLite(t)
	f.start()
	for i := range 50 {
		name := fmt.Sprintf("server%d.org", i)
		f.add(edu(name, "m"))
		if i%2 == 0 {
			f.remote.fails(errNetwork)
			_ = f.sendTransaction(f.transaction(name, nil, typing(1)))
			f.remote.on(nil)
		}
		if f.Destinations() != 1 {
			t.Fatalf("something waits for %d destinations", f.Destinations())
		}
		f.must(f.sendTransaction(f.transaction(name, nil, typing(1))))
		f.wantForgotten()
	}
}

// Those to which the host alone sends are not remembered at all.
func TestForgetsTheHostsDestinations(t *testing.T) {
	f := onSQLite(t)
	f.start()
	for i := range 10 {
		f.must(f.sendTransaction(f.transaction(fmt.Sprintf("server%d.org", i), []string{`{}`}, typing(i))))
	}
	f.wantForgotten()
}

// The last EDU goes while the destination is being asked, or rung for.
func TestForgetsWhatIsLookedAfter(t *testing.T) {
	for _, err := range []error{nil, errNetwork} {
		f := onSQLite(t)
		f.start()
		asked, release := make(chan struct{}), make(chan struct{})
		f.host.change(func() {
			f.host.givenUp[there] = true
			f.host.onReach = func(context.Context, string) error {
				close(asked)
				<-release
				return err
			}
		})
		f.add(edu(there, "m"))
		<-asked
		f.must(f.send())
		close(release)
		f.wantForgotten()

		rang, release := make(chan struct{}), make(chan struct{})
		f.host.change(func() {
			f.host.givenUp[there] = false
			f.host.onRing = func(context.Context, string) error {
				close(rang)
				<-release
				return err
			}
		})
		f.add(edu(there, "n"))
		<-rang
		f.must(f.send())
		close(release)
		f.wantForgotten()
	}
}

// Until its rows are deleted a destination is remembered, or they would be sent again.
func TestRemembersWhatIsNotDeleted(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.add(edu(there, "m"))
		f.store.fail("Sent", lostBefore)
		for range 5 {
			f.must(f.send())
			f.settle()
			f.clock.advance(outbox.Tick)
		}
		if len(f.remote.took()) != 1 || f.Remembered() != 1 {
			t.Errorf("%d transactions, %d destinations remembered", len(f.remote.took()), f.Remembered())
		}
		f.store.heal()
		f.must(f.send())
		f.wantLine(there, nil)
		f.wantForgotten()
	})
}

// A destination that refused something is remembered until that is sent again, across restarts.
func TestRemembersWhatIsToBeTriedAgain(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.refuseOne()
		f.restart()
		f.settle()
		if f.Destinations() != 1 || f.Remembered() != 1 {
			t.Errorf("%d destinations", f.Destinations())
		}
		f.remote.on(nil)
		f.wantRungAfter(outbox.Pauses[0])
		f.must(f.send())
		f.wantForgotten()
	})
}
