package e2e

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// Two servers whose users send to one another while the network between them fails, and while the servers and their databases
// do: what was answered 200 by one arrives at the other once and in order.
func TestTortureFederation(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		w := newTorture(t, shortFederation)
		w.onItsWay = silentRecovery
		var faults []*fault
		for _, name := range []string{"here", "there"} {
			s, some := w.federated(t, b, name)
			k := keep(t, s, endsForNATS)
			w.settle(t, k, 3, 2)
			faults = append(append(faults, some...), killed(name, k), stopped(name, k))
		}
		w.passedOn = func() {
			for _, s := range w.servers {
				for _, other := range w.servers {
					wantOutboxEmpty(t, s, other)
				}
			}
		}
		w.torment(t, faults...)
	})
}

// federated makes a server with a wire in front of it, by which the other one reaches it, and the faults of that wire. Where the
// faults go on for long it has those of its database, too.
func (w *torture) federated(t testing.TB, b Backend, name string) (*Server, []*fault) {
	t.Helper()
	address, err := remote.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Federation: true, Behind: address}
	var s *Server
	var faults []*fault
	if w.long {
		s, faults = w.server(t, b, o)
		for _, one := range faults {
			one.name += ", " + name
			if one.part != "" {
				one.part += ", " + name
			}
		}
	} else {
		s = NewServer(t, b, withTimeout(o))
	}
	wire := NewWire(t, address, s.federation)
	t.Cleanup(func() { t.Logf("%d answers of %s broken", wire.BrokenAnswers.Load(), name) })
	return s, append(faults, networkFaults(wire, name)...)
}

// networkFaults are those of the network by which other servers reach one.
func networkFaults(w *Wire, name string) []*fault {
	part := "network to " + name
	one := func(what string, inject func(chance *rand.Rand)) *fault {
		return &fault{
			name: part + " " + what, part: part,
			inject: func(_ testing.TB, chance *rand.Rand) { inject(chance) },
			heal:   func(testing.TB) { w.Fair() },
		}
	}
	return []*fault{
		one("cut", func(*rand.Rand) { w.Close() }),
		one("silent", func(*rand.Rand) { w.Freeze() }),
		one("slow", func(chance *rand.Rand) {
			each, random := time.Duration(1+chance.IntN(200))*time.Millisecond, newLockedRand(chance.Uint64())
			w.Slow(func() time.Duration { return random.upTo(each) })
		}),
		one("breaking answers", func(chance *rand.Rand) {
			random := newLockedRand(chance.Uint64())
			w.Answers(func() bool { return random.chance(0.3) })
		}),
	}
}
