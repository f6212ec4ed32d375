package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// envTorture names the environment variable with how long the faults go on, instead of for a short time.
	envTorture = "TODEVICE_TORTURE"
	// envSeed names the one with the seed of a run to repeat: its faults come in the same order.
	envSeed = "TODEVICE_TEST_SEED"
	// envRate names the one with how many requests a second must be accepted in the mean of a long run, its faults included. Without it
	// a run says how many they were.
	envRate = "TODEVICE_TORTURE_RATE"
	// envFaults names the one with a regular expression for the names of the faults that are to happen, instead of all.
	envFaults = "TODEVICE_TORTURE_FAULTS"

	// How long the faults go on as one of the tests, within one server and between two. What they leave behind takes
	// up to 10 seconds more.
	shortTorture, shortFederation = 15 * time.Second, 9 * time.Second
	// How long one of them lasts at most, as one of the tests and for long.
	shortFault, longFault = 600 * time.Millisecond, 3 * time.Second

	// How many messages must pass after a fault before the next one, as one of the tests and for long.
	shortPass, longPass = 100, 300
)

// Everything that a server stands on fails at random, over and over, while users send to one another and receive in all ways:
// what was answered 200 arrives once, in order and nowhere else, and nothing comes again once it is acknowledged.
func TestTorture(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		w := newTorture(t, shortTorture)
		s, faults := w.server(t, b, Options{})
		k := keep(t, s, endsForNATS)
		w.settle(t, k, 6, 2)
		faults = append(faults, killed("server", k), stopped("server", k), second(t, k))
		w.torment(t, append(faults, w.databaseFaults(t, k)...)...)
	})
}

// server makes a server, which is not started yet, on a database of its own, and the faults of what it stands on.
func (w *torture) server(t testing.TB, b Backend, o Options) (s *Server, faults []*fault) {
	t.Helper()
	o = withTimeout(o)
	if w.long {
		n := StartNATS(t)
		o.NATS = n.URL
		faults = natsFaults(n)
	}
	if b == SQLite {
		s, some := w.onSQLite(t, o)
		return s, append(faults, some...)
	}
	s, some := w.onPostgres(t, o)
	return s, append(faults, some...)
}

func (w *torture) onSQLite(t testing.TB, o Options) (*Server, []*fault) {
	t.Helper()
	disk := w.disk(t, "100m")
	if disk == nil {
		s := NewServer(t, SQLite, o)
		return s, sqliteFaults(s)
	}
	o.DatabaseOf = &Server{dir: disk.dir}
	s := NewServer(t, SQLite, o)
	return s, append(sqliteFaults(s), full("disk of SQLite full", "SQLite", disk, func() error { return nil }))
}

func (w *torture) onPostgres(t testing.TB, o Options) (*Server, []*fault) {
	t.Helper()
	disk, dir := w.disk(t, "500m"), ""
	if disk != nil {
		dir = disk.dir
	}
	pg := ownPostgresIn(t, dir, "max_connections=100", "max_wal_size=64MB")
	wire, database := wirePostgres(t, pg.URL)
	t.Cleanup(func() {
		t.Logf("%d commits cut off before PostgreSQL, %d after it", wire.LostCommits.Load(), wire.UnansweredCommits.Load())
	})
	faults := append(postgresFaults(pg, wire), outOfConnections(pg, wire))
	if disk != nil {
		faults = append(faults, full("disk of PostgreSQL full", "PostgreSQL", disk, func() error {
			if !pg.Ended() {
				return nil
			}
			return pg.Run()
		}))
	}
	o.Postgres = database
	s := NewServer(t, Postgres, o)
	w.postgres[s] = wiredPostgres{pg, wire}
	return s, faults
}

// databaseFaults are those by which another database takes the place of a server's. They take seconds each.
func (w *torture) databaseFaults(t testing.TB, k *keeper) []*fault {
	t.Helper()
	switch {
	case !w.long:
		return nil
	case k.s.Backend == SQLite:
		return []*fault{restoredSQLite(t, w, k)}
	}
	pg := w.postgres[k.s]
	return []*fault{restoredPostgres(t, w, k, pg.Server), promoted(t, pg.Server, pg.wire)}
}

// disk returns a disk to fill where the faults go on for long. The short form is one of the tests that anybody
// can run: it does without what takes the rights of root.
func (w *torture) disk(t testing.TB, size string) *disk {
	t.Helper()
	if !w.long {
		return nil
	}
	return newDisk(t, size)
}

// torture is a crowd and what its servers suffer.
type torture struct {
	*crowd
	seed     uint64
	long     bool
	duration time.Duration
	longest  time.Duration
	pass     int
	floor    float64       // requests a second
	caughtUp time.Duration // the longest that took after a fault
	postgres map[*Server]wiredPostgres
}

func newTorture(t testing.TB, short time.Duration) *torture {
	t.Helper()
	w := &torture{seed: uint64(time.Now().UnixNano()), duration: short, longest: shortFault, pass: shortPass, postgres: map[*Server]wiredPostgres{}}
	var err error
	if given := os.Getenv(envSeed); given != "" {
		if w.seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("%s: %v", envSeed, err)
		}
	}
	if given := os.Getenv(envTorture); given != "" {
		if w.duration, err = time.ParseDuration(given); err != nil {
			t.Fatalf("%s: %v", envTorture, err)
		}
		w.long, w.longest, w.pass = true, longFault, longPass
	}
	t.Logf("%s=%d", envSeed, w.seed)
	w.crowd = &crowd{journal: NewJournal(), keepers: map[*Server]*keeper{}, seed: w.seed}
	if w.long {
		if os.Getenv(envRace) != "1" {
			w.rate = longRate
		}
		w.floor = rateFloor(t)
	}
	return w
}

// rateFloor returns the rate that a long run must reach, or 0.
func rateFloor(t testing.TB) float64 {
	t.Helper()
	given := os.Getenv(envRate)
	if given == "" {
		return 0
	}
	floor, err := strconv.ParseFloat(given, 64)
	if err != nil {
		t.Fatalf("%s: %v", envRate, err)
	}
	return floor
}

// torment has the faults happen and checks what became of the messages.
func (w *torture) torment(t testing.TB, faults ...*fault) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), w.duration+5*time.Minute)
	defer cancel()
	f := newTorment(w.seed, w.longest, chosen(t, faults)...)
	f.recovered = func(t testing.TB, after string) {
		t.Helper()
		for _, k := range w.keepers {
			k.awaitUp(t)
		}
		accepted, arrived := w.journal.Counts()
		eventually(t, "messages pass again after: "+after, func() (bool, any) {
			a, b := w.journal.Counts()
			return a >= accepted+w.pass && b >= arrived+w.pass || t.Failed(), []int{a - accepted, b - arrived}
		})
		w.catchUp(t)
	}
	broken := func() bool { return w.journal.Faults() != "" || w.unasked() != nil }
	began := time.Now()
	defer func() {
		if t.Failed() || w.long {
			t.Logf("%s=%d; the faults were:%s", envSeed, w.seed, f.order())
		}
	}()
	w.run(ctx, t, func() { f.run(t, began.Add(w.duration), broken) })
	if err := ctx.Err(); err != nil {
		t.Errorf("the crowd did not come to its end: %v", err)
	}
	figures := w.journal.Check()
	t.Log(w.report(f, figures))
	if !figures.Good() {
		t.Errorf("promises were broken after %s:\n%s", time.Since(began).Round(time.Second), w.journal.Faults())
	}
	if mean := w.mean(w.messages.Load()); mean < w.floor {
		t.Errorf("%.1f requests/s were accepted in the mean, %s wants %.1f", mean, envRate, w.floor)
	}
	w.wantQueuesEmpty(t)
	for _, k := range w.keepers {
		orFail(t, k.stop())
		orFail(t, k.fault())
	}
}

// catchUp waits until the senders are back on their schedule, or have had long enough for it.
func (w *torture) catchUp(t testing.TB) {
	t.Helper()
	began := time.Now()
	for w.behind() > onSchedule && time.Since(began) < longestCatchUp && !t.Failed() {
		time.Sleep(20 * time.Millisecond)
	}
	w.caughtUp = max(w.caughtUp, time.Since(began))
}

// mean returns how many of so many there were a second, over the whole time that the load was on.
func (w *torture) mean(n int64) float64 { return float64(n) / w.loaded.Seconds() }

// report says what a run was and what it found.
func (w *torture) report(f *torment, figures Figures) string {
	var out strings.Builder
	requests, copies := w.messages.Load(), int64(figures.Accepted)
	fmt.Fprintf(&out, "under load for %s:", w.loaded.Round(time.Second))
	fmt.Fprintf(&out, "\nrequests accepted: %d, %.1f/s", requests, w.mean(requests))
	fmt.Fprintf(&out, "\nmessages accepted, one for each device: %d, %.1f/s", copies, w.mean(copies))
	fmt.Fprintf(&out, "\nfaults: %d; %s", f.count(), f)
	fmt.Fprintf(&out, "\nmessages: %s", figures)
	fmt.Fprintf(&out, "\nthe slowest answer took %s", &w.slowest)
	if w.rate > 0 {
		fmt.Fprintf(&out, "\nthe schedule had %d requests/s; after a fault it took up to %s to be back on it", w.rate, w.caughtUp.Round(time.Millisecond))
	}
	return out.String()
}

// unasked returns what servers did that no fault made them do.
func (w *torture) unasked() error {
	for _, k := range w.keepers {
		if err := k.fault(); err != nil {
			return err
		}
	}
	return nil
}

// wantQueuesEmpty waits until what was acknowledged is deleted: by then a device that comes without a token gets nothing.
func (w *torture) wantQueuesEmpty(t testing.TB) {
	t.Helper()
	if t.Failed() {
		return
	}
	for _, device := range w.devices() {
		eventually(t, fmt.Sprintf("the queue of %s is empty", deviceName(device)), func() (bool, any) {
			res, a := w.session(device).TrySync(t.Context(), Sync{})
			if res == nil {
				return false, a
			}
			return len(res.Events()) == 0, describe(res.Events())
		})
	}
}
