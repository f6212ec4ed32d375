package e2e

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

const (
	// An hour is what a clock that takes the wrong time zone for its own is wrong by.
	clockStep = 3600
	// shortClock is how long the faults go on where a server whose clock can be set is given, but no time.
	shortClock = 10 * time.Second
)

// The server's clock goes an hour forward and back, while it runs and while it does not, over and over. Building such a server takes minutes, so
// that only the long form does it, if none is given; the short form looks that one can be built.
func TestTortureClock(t *testing.T) {
	if os.Getenv(envTorture) == "" && os.Getenv(envClockBinary) == "" {
		wantClockOverlay(t)
		return
	}
	onBoth(t, func(t *testing.T, b Backend) {
		w := newTorture(t, shortClock)
		s := NewServer(t, b, withTimeout(Options{}))
		c := newClock(t, s)
		k := keep(t, s, endsForNATS)
		w.settle(t, k, 6, 2)
		w.torment(t, append(clockFaults(c, k), killed("server", k), stopped("server", k))...)
	})
}

// wantClockOverlay looks that what is changed for such a server fits the Go that is installed.
func wantClockOverlay(t *testing.T) {
	t.Helper()
	overlay, err := clockOverlay(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := ModuleDir()
	orFail(t, err)
	orFail(t, goBuild(dir, "-overlay", overlay, "time"))
}

// clockFaults are those of the clock of a server, and by the fault's end it is right again.
func clockFaults(c *clock, k *keeper) []*fault {
	whileUp := func(name string, seconds int) *fault {
		return &fault{
			name: name, part: "clock",
			inject: func(t testing.TB, _ *rand.Rand) { c.set(t, seconds) },
			heal:   func(t testing.TB) { c.set(t, 0) },
		}
	}
	whileDown := func(name string, seconds int) *fault {
		return &fault{
			name: name, alone: true,
			inject: func(t testing.TB, _ *rand.Rand) { c.setDown(t, k, seconds) },
			heal:   func(t testing.TB) { c.setDown(t, k, 0) },
		}
	}
	return []*fault{
		whileUp("clock an hour back", -clockStep), whileDown("clock an hour back over a restart", -clockStep),
		whileUp("clock an hour ahead", clockStep), whileDown("clock an hour ahead over a restart", clockStep),
	}
}

// setDown sets the clock between two runs of the server.
func (c *clock) setDown(t testing.TB, k *keeper, seconds int) {
	t.Helper()
	orFail(t, k.kill())
	c.set(t, seconds)
	k.up()
}
