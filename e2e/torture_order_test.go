package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A seed repeats the order of the faults and what they choose, and each fault happens before any happens again.
func TestSeedRepeatsTorment(t *testing.T) {
	const rounds = 40
	torments := func(seed uint64) (happened []string) {
		var faults []*fault
		for i := range 6 {
			name := fmt.Sprintf("fault %d", i)
			faults = append(faults, &fault{
				name: name, alone: i == 0, part: []string{"", "one", "one", "", "", "two"}[i],
				inject: func(_ testing.TB, chance *rand.Rand) {
					happened = append(happened, fmt.Sprint(name, " ", chance.Uint64()))
				},
				heal: func(testing.TB) {},
			})
		}
		f := newTorment(seed, time.Millisecond, faults...)
		f.recovered = func(testing.TB, string) {}
		for range rounds {
			f.next(t)
		}
		least, most := rounds*2, 0
		for _, one := range faults {
			least, most = min(least, one.happened), max(most, one.happened)
		}
		if most-least > 1 {
			t.Errorf("one fault happened %d times, another one %d times", least, most)
		}
		return happened
	}
	first := torments(1)
	if !slices.Equal(first, torments(1)) {
		t.Error("one seed gave two orders")
	}
	if slices.Equal(first, torments(2)) {
		t.Error("two seeds gave one order")
	}
	if len(first) <= rounds {
		t.Error("no two faults happened at once")
	}
}

// A sender that was held up for a second sends what it missed without a pause, and no more. Without a schedule it goes on as before.
func TestPaceMakesUp(t *testing.T) {
	const mean = time.Millisecond
	for _, scheduled := range []bool{true, false} {
		p, chance := newPace(mean, scheduled), rand.New(rand.NewPCG(1, 1))
		p.due.Add(-int64(time.Second))
		if behind := p.behind(time.Now()); behind < 1000 {
			t.Errorf("a second late at one request in %s is %.0f requests behind", mean, behind)
		}
		late := 0
		for p.pause(chance) <= 0 {
			late++
		}
		if least, most := 900, 1300; scheduled && (late < least || late > most) {
			t.Errorf("after a second at one request in %s it made up for %d, want %d to %d", mean, late, least, most)
		}
		if !scheduled && late > 0 {
			t.Errorf("without a schedule it made up for %d", late)
		}
	}
}
