package devices_test

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
)

// change begins a change of a user's devices, and returns what ends it.
func change(d interface {
	Change(userID string, change func() error) error
}, userID string) (end func()) {
	begun, proceed, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.Change(userID, func() error {
			close(begun)
			<-proceed
			return nil
		})
	}()
	<-begun
	return func() {
		close(proceed)
		<-ended
	}
}

// What was looked up is believed unless the look-up or the use of it overlaps with a change, or a change lies between them.
func TestWatch(t *testing.T) {
	const alice = "@alice:x"
	d, _ := newDirectory(t)
	nothing := func() {}
	changed := func() { d.Changed(alice) }
	type steps struct{ before, during, after func() } // the look-up
	for name, test := range map[string]struct {
		steps
		want bool
	}{
		"no change":                   {steps{nothing, nothing, nothing}, true},
		"a change before the look-up": {steps{changed, nothing, nothing}, true},
		"a change during the look-up": {steps{nothing, changed, nothing}, false},
		"a change after the look-up":  {steps{nothing, nothing, changed}, false},
	} {
		test.before()
		ofUser := d.Watch()
		test.during()
		holds := ofUser(alice)
		test.after()
		if holds() != test.want {
			t.Errorf("%s: it holds: %v", name, !test.want)
		}
		if !d.Watch()(alice)() {
			t.Errorf("%s: what is looked up then does not hold", name)
		}
	}
}

func TestWatchWhileAChangeIsUnderWay(t *testing.T) {
	const alice = "@alice:x"
	d, _ := newDirectory(t)
	before := d.Watch()(alice)
	ofUser := d.Watch()
	end := change(d, alice)
	overBegin, within := ofUser(alice), d.Watch()(alice)
	ofUser = d.Watch()
	for name, holds := range map[string]func() bool{"before": before, "over the beginning of": overBegin, "within": within} {
		if holds() {
			t.Errorf("what was looked up %s the change holds during it", name)
		}
	}
	end()
	for name, holds := range map[string]func() bool{
		"before": before, "over the beginning of": overBegin, "within": within, "over the end of": ofUser(alice),
	} {
		if holds() {
			t.Errorf("what was looked up %s the change holds after it", name)
		}
	}
	if !d.Watch()(alice)() {
		t.Error("what is looked up after the change does not hold")
	}
}

// A change of another user that takes long is no reason to look up everything again.
func TestWatchOfOtherUsers(t *testing.T) {
	d, _ := newDirectory(t)
	const users = 1000
	var holds []func() bool
	add := func() {
		for i := range users {
			holds = append(holds, d.Watch()(fmt.Sprintf("@user%d:x", i)))
		}
	}
	add()
	end := change(d, "@alice:x")
	add()
	wantMost := func(when string) {
		t.Helper()
		lost := 0
		for _, h := range holds {
			if !h() {
				lost++
			}
		}
		if lost > len(holds)/20 {
			t.Errorf("%s another user's change %d of %d do not hold", when, lost, len(holds))
		}
	}
	wantMost("during")
	end()
	wantMost("after")
}

// What was read before a change does not hold once the change has returned, whichever steps of the two came between each other.
func TestWatchUnderConcurrentChanges(t *testing.T) {
	const alice, rounds, steps = "@alice:x", 100_000, 40
	d, _ := newDirectory(t)
	var value, begun, returned atomic.Int64
	until := func(counter *atomic.Int64, n int64) {
		for counter.Load() < n {
			runtime.Gosched()
		}
	}
	delay := func(n int64) { // by some nanoseconds for each
		for range n {
			value.Load()
		}
	}
	go func() {
		for n := range int64(rounds) {
			until(&begun, n+1)
			delay(n % steps)
			_ = d.Change(alice, func() error {
				value.Store(n + 1)
				return nil
			})
			returned.Store(n + 1)
		}
	}()
	kept := 0
	for n := range int64(rounds) {
		begun.Store(n + 1)
		delay(n / steps % steps * 10) // the other one starts later
		ofUser := d.Watch()
		read := value.Load()
		holds := ofUser(alice)
		until(&returned, n+1)
		switch {
		case !holds():
		case read == n:
			t.Fatalf("what was read before change %d holds after it", n+1)
		default:
			kept++
		}
	}
	t.Logf("%d of %d look-ups came after the change", kept, rounds)
}
