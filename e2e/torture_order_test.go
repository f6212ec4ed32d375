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
