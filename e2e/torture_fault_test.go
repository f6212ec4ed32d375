package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// fault is one thing that goes wrong around the servers and is put right again.
type fault struct {
	name string
	// alone keeps it from happening while another fault does, and part while another one of the same part does.
	alone bool
	part  string
	// inject has it happen. What it chooses, it chooses by the chance given.
	inject func(t testing.TB, chance *rand.Rand)
	// heal puts it right, at once or as soon as it can be. The servers need not answer then.
	heal func(t testing.TB)

	happened int
}

// torment has faults happen, one or two at a time, in an order that the seed determines.
type torment struct {
	faults []*fault
	chance *rand.Rand
	// longest is how long a fault lasts at most.
	longest time.Duration
	// recovered waits until all is well again after a fault. The text names it.
	recovered func(t testing.TB, after string)

	deck []*fault // each fault happens once before any happens again
	log  strings.Builder
}

// newTorment returns the torments of a seed.
func newTorment(seed uint64, longest time.Duration, faults ...*fault) *torment {
	return &torment{faults: faults, chance: rand.New(rand.NewPCG(seed, 1<<63)), longest: longest}
}

// run goes on until the time is over, or until something is found broken.
func (f *torment) run(t testing.TB, end time.Time, broken func() bool) {
	t.Helper()
	f.recovered(t, "the start")
	for time.Now().Before(end) && !broken() && !t.Failed() {
		f.next(t)
	}
}

// next has one fault happen, and perhaps another one while it lasts.
func (f *torment) next(t testing.TB) {
	t.Helper()
	first := f.draw()
	during := []*fault{first}
	// Drawn whether they are needed or not, so that the order of what follows does not depend on it.
	overlap, seed := f.chance.IntN(3) == 0, f.chance.Uint64()
	if overlap && !first.alone {
		if second := f.draw(); second.alone || second == first || second.part != "" && second.part == first.part {
			f.deck = append(f.deck, second)
		} else {
			during = append(during, second)
		}
	}
	chance := rand.New(rand.NewPCG(seed, 0))
	names := make([]string, len(during))
	for i, one := range during {
		names[i] = one.name
	}
	what := strings.Join(names, " and ")
	fmt.Fprintf(&f.log, "\n    %s %s", time.Now().Format("15:04:05.000"), what)
	for _, one := range during {
		one.happened++
		one.inject(t, chance)
		time.Sleep(f.lasts(chance))
	}
	for i, one := range during {
		if i > 0 {
			time.Sleep(f.lasts(chance))
		}
		one.heal(t)
	}
	healed := time.Now()
	f.recovered(t, what)
	fmt.Fprintf(&f.log, ", well again %s after its end", time.Since(healed).Round(time.Millisecond))
}

func (f *torment) lasts(chance *rand.Rand) time.Duration {
	return time.Duration(chance.Int64N(int64(f.longest)))
}

func (f *torment) draw() *fault {
	if len(f.deck) == 0 {
		f.deck = append(f.deck, f.faults...)
		f.chance.Shuffle(len(f.deck), func(i, j int) { f.deck[i], f.deck[j] = f.deck[j], f.deck[i] })
	}
	last := len(f.deck) - 1
	drawn := f.deck[last]
	f.deck = f.deck[:last]
	return drawn
}

// String says how often each fault happened.
func (f *torment) String() string {
	var out []string
	for _, one := range f.faults {
		out = append(out, fmt.Sprintf("%s: %d", one.name, one.happened))
	}
	return strings.Join(out, ", ")
}

// count returns how many faults there were.
func (f *torment) count() (n int) {
	for _, one := range f.faults {
		n += one.happened
	}
	return n
}

// order says which faults happened, and when.
func (f *torment) order() string { return f.log.String() }

func killed(name string, k *keeper) *fault {
	return &fault{
		name: name + " killed", part: name,
		inject: func(t testing.TB, _ *rand.Rand) { orFail(t, k.kill()) },
		heal:   func(testing.TB) { k.up() },
	}
}

func stopped(name string, k *keeper) *fault {
	ended := make(chan error, 1)
	return &fault{
		name: name + " stopped", part: name,
		// What it waits for may be what the other fault has taken away.
		inject: func(testing.TB, *rand.Rand) { go func() { ended <- k.stop() }() },
		heal: func(t testing.TB) {
			orFail(t, <-ended)
			k.up()
		},
	}
}

// chosen leaves those that the environment asks for.
func chosen(t testing.TB, faults []*fault) []*fault {
	t.Helper()
	pattern, err := regexp.Compile(os.Getenv(envFaults))
	if err != nil {
		t.Fatalf("%s: %v", envFaults, err)
	}
	left := slices.DeleteFunc(slices.Clone(faults), func(f *fault) bool { return !pattern.MatchString(f.name) })
	if len(left) == 0 {
		t.Fatalf("%s=%s leaves no fault", envFaults, pattern)
	}
	return left
}

func orFail(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
