package handover_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/handover"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	hour     = types.Position(time.Hour / time.Microsecond)
	patience = time.Minute
)

var errAway = errors.New("the database is away")

// fakeStore holds some messages, and imports what it is told to.
type fakeStore struct {
	storage.Store
	state    storage.State
	held     int
	imported storage.Imported
	err      error
	report   func(storage.Progress)
}

func (s *fakeStore) State(context.Context) (storage.State, error) { return s.state, s.err }
func (s *fakeStore) Held(context.Context) (int, error)            { return s.held, nil }

func (s *fakeStore) Import(_ context.Context, _ storage.ForeignQueue, progress storage.Progress) (storage.Imported, error) {
	if s.report != nil {
		s.report(progress)
	}
	return s.imported, s.err
}

// fakeQueue is the host's sequence.
type fakeQueue struct {
	storage.ForeignQueue
	mu     sync.Mutex
	given  types.Position
	asked  []types.Position // of Raise
	fail   error
	raised chan struct{} // gets an element for each Raise
}

func newQueue() *fakeQueue { return &fakeQueue{raised: make(chan struct{}, 100)} }

func (q *fakeQueue) Prepare(context.Context) error { return nil }

func (q *fakeQueue) Transact(ctx context.Context, f func(context.Context, *sql.Tx) error) error {
	return f(ctx, nil)
}

func (q *fakeQueue) Given(context.Context, *sql.Tx) (types.Position, error) { return q.given, q.fail }

func (q *fakeQueue) Raise(_ context.Context, _ *sql.Tx, atLeast types.Position) (types.Position, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked = append(q.asked, atLeast)
	q.raised <- struct{}{}
	return atLeast, q.fail
}

func (q *fakeQueue) last() types.Position {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.asked[len(q.asked)-1]
}

func (q *fakeQueue) setFail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fail = err
}

func newLog() (*logrus.Entry, *bytes.Buffer) {
	var out bytes.Buffer
	log := logrus.New()
	log.SetOutput(&out)
	return logrus.NewEntry(log), &out
}

func TestPrepare(t *testing.T) {
	tests := map[string]struct {
		store storage.State
		held  int
		given types.Position
		done  storage.Imported
		want  types.Position
		logs  []string
		not   []string
	}{
		"a first start":                {want: 0, not: []string{"messages"}},
		"what the host gave out":       {given: 7, want: 7},
		"what was imported":            {given: 7, done: storage.Imported{Messages: 3, Through: 9}, want: 9, logs: []string{"took over", "messages=3"}, not: []string{"rows="}},
		"what can't be read":           {given: 7, done: storage.Imported{Unreadable: 2}, want: 7, logs: []string{"rows=2"}, not: []string{"took over"}},
		"the host ran":                 {store: storage.State{Last: 5}, held: 4, given: 7, want: 7, logs: []string{"the host ran without", "messages=4"}},
		"the host ran, nothing waited": {store: storage.State{Last: 5}, given: 7, want: 7, not: []string{"the host ran"}},
		"the host did not run":         {store: storage.State{Last: 5}, held: 4, want: 0, not: []string{"the host ran"}},
		"the host is beyond all time":  {given: storage.LargestForeign, want: storage.LargestForeign},
		"the host is level":            {store: storage.State{Last: 7}, held: 4, given: 7, want: 7, not: []string{"the host ran"}},
		"the host ran before":          {store: storage.State{Last: 8}, held: 4, given: 7, want: 7, not: []string{"the host ran"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			queue := newQueue()
			queue.given = test.given
			log, out := newLog()
			h := handover.New(handover.Options{
				Store: &fakeStore{state: test.store, held: test.held, imported: test.done}, Queue: queue, Log: log,
			})
			if got, err := h.Prepare(t.Context()); err != nil || got != test.want {
				t.Errorf("the claim begins at %d (error %v), want %d", got, err, test.want)
			}
			if len(queue.asked) > 0 {
				t.Error("the sequence was raised before the store was claimed: a crash in between would hide what the host gave out")
			}
			for _, want := range test.logs {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the log does not have %q:\n%s", want, out.String())
				}
			}
			for _, unwanted := range test.not {
				if strings.Contains(out.String(), unwanted) {
					t.Errorf("the log has %q:\n%s", unwanted, out.String())
				}
			}
			h.Stop(t.Context()) // not started
		})
	}
}

func TestPrepareFails(t *testing.T) {
	log, _ := newLog()
	queue := newQueue()
	queue.given = storage.LargestForeign + 1
	if _, err := handover.New(handover.Options{Store: &fakeStore{}, Queue: queue, Log: log}).Prepare(t.Context()); err == nil {
		t.Error("the claim begins where there is no room for positions after it")
	}
	queue.given = 0
	if _, err := handover.New(handover.Options{Store: &fakeStore{err: errAway}, Queue: queue, Log: log}).Prepare(t.Context()); !errors.Is(err, errAway) {
		t.Errorf("the error is %v", err)
	}
	queue.fail = errAway
	h := handover.New(handover.Options{Store: &fakeStore{}, Queue: queue, Log: log, Last: func() types.Position { return 0 }})
	if _, err := h.Prepare(t.Context()); !errors.Is(err, errAway) {
		t.Errorf("the error is %v", err)
	}
	if err := h.Start(t.Context()); !errors.Is(err, errAway) {
		t.Errorf("the error is %v", err)
	}
	h.Stop(t.Context()) // not started
}

// An import of a long queue tells how far it is, but not after each part.
func TestProgressIsLogged(t *testing.T) {
	now := time.Unix(1e9, 0)
	log, out := newLog()
	store := &fakeStore{report: func(progress storage.Progress) {
		for i := range 100 {
			now = now.Add(time.Second / 10)
			progress(i+1, 100)
		}
	}}
	h := handover.New(handover.Options{Store: store, Queue: newQueue(), Log: log, Now: func() time.Time { return now }})
	if _, err := h.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out.String(), "total=100"); lines != 2 || !strings.Contains(out.String(), "done=50 ") {
		t.Errorf("%d lines tell of the progress, want 2:\n%s", lines, out.String())
	}
}

// The host's positions stay an hour ahead of the clock, and of positions that are ahead of it.
func TestHostStaysAhead(t *testing.T) {
	var mu sync.Mutex
	now, last := time.Unix(2e9, 0), types.Position(0)
	at := types.Position(now.UnixMicro())
	set := func(n time.Time, l types.Position) {
		mu.Lock()
		defer mu.Unlock()
		now, last = n, l
	}
	queue, ticks, pauses := newQueue(), make(chan time.Time), make(chan time.Duration, 100)
	log, out := newLog()
	h := handover.New(handover.Options{
		Store: &fakeStore{}, Queue: queue, Log: log,
		Last: func() types.Position { mu.Lock(); defer mu.Unlock(); return last },
		Now:  func() time.Time { mu.Lock(); defer mu.Unlock(); return now },
		Tick: func(pause time.Duration) <-chan time.Time { pauses <- pause; return ticks },
	})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	receive(t, queue.raised)
	if got := queue.last(); got != at+hour {
		t.Errorf("raised to %d at the start, want %d", got, at+hour)
	}
	usual := receive(t, pauses)
	if usual <= 0 || usual > time.Minute {
		t.Errorf("the next look comes after %s", usual)
	}
	next := func() types.Position {
		t.Helper()
		ticks <- time.Time{}
		receive(t, queue.raised)
		return queue.last()
	}
	set(time.Unix(2e9+60, 0), at)
	if got := next(); got != at+60e6+hour {
		t.Errorf("raised to %d, want an hour after the clock", got)
	}
	receive(t, pauses)
	set(time.Unix(2e9, 0), at+100)
	if got := next(); got != at+100+hour {
		t.Errorf("raised to %d, want an hour after the last position", got)
	}
	receive(t, pauses)
	queue.setFail(errAway)
	next()
	receive(t, pauses)
	queue.setFail(nil)
	next()
	if pause := receive(t, pauses); pause != usual {
		t.Errorf("the next look comes after %s", pause)
	}
	set(time.Unix(2e9+9000, 0), at+100) // the clock leaps, and nobody looks before the stop
	h.Stop(t.Context())
	if got := queue.last(); got != at+9000e6+hour {
		t.Errorf("raised to %d at the end, want an hour after the clock", got)
	}
	if !strings.Contains(out.String(), errAway.Error()) {
		t.Errorf("the log does not tell of the failure:\n%s", out.String())
	}
}

func receive[T any](t *testing.T, from <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(patience):
		t.Fatal("nothing happened")
	}
	return got
}

// faultyStore and faultyQueue fail at one step.
type faultyStore struct {
	fakeStore
	stateErr, heldErr, importErr error
}

func (s *faultyStore) State(context.Context) (storage.State, error) { return s.state, s.stateErr }
func (s *faultyStore) Held(context.Context) (int, error)            { return s.held, s.heldErr }

func (s *faultyStore) Import(context.Context, storage.ForeignQueue, storage.Progress) (storage.Imported, error) {
	return s.imported, s.importErr
}

type faultyQueue struct {
	*fakeQueue
	prepareErr error
	raising    func(ctx context.Context)
}

func (q *faultyQueue) Prepare(context.Context) error { return q.prepareErr }

func (q *faultyQueue) Raise(ctx context.Context, tx *sql.Tx, atLeast types.Position) (types.Position, error) {
	if q.raising != nil {
		q.raising(ctx)
	}
	return q.fakeQueue.Raise(ctx, tx, atLeast)
}

// A step that fails ends the start: nothing is claimed on the word of a database that is away.
func TestPrepareFailsAtEachStep(t *testing.T) {
	for name, fail := range map[string]func(*faultyStore, *faultyQueue){
		"the queue":  func(_ *faultyStore, q *faultyQueue) { q.prepareErr = errAway },
		"the state":  func(s *faultyStore, _ *faultyQueue) { s.stateErr = errAway },
		"what waits": func(s *faultyStore, _ *faultyQueue) { s.heldErr = errAway },
		"the import": func(s *faultyStore, _ *faultyQueue) { s.importErr = errAway },
	} {
		t.Run(name, func(t *testing.T) {
			store, queue := &faultyStore{}, &faultyQueue{fakeQueue: newQueue()}
			store.state.Last, queue.given = 5, 7
			fail(store, queue)
			log, _ := newLog()
			if _, err := handover.New(handover.Options{Store: store, Queue: queue, Log: log}).Prepare(t.Context()); !errors.Is(err, errAway) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// The goroutine outlives the context of the start and not Stop, and each of its calls is bounded.
func TestStopEndsTheGoroutine(t *testing.T) {
	queue, ticks := &faultyQueue{fakeQueue: newQueue()}, make(chan time.Time)
	log, _ := newLog()
	h := handover.New(handover.Options{
		Store: &fakeStore{}, Queue: queue, Log: log,
		Last: func() types.Position { return 0 },
		Tick: func(time.Duration) <-chan time.Time { return ticks },
	})
	ctx, cancel := context.WithCancel(t.Context())
	if err := h.Start(ctx); err != nil {
		t.Fatal(err)
	}
	receive(t, queue.raised)
	cancel()
	tick := func() {
		t.Helper()
		select {
		case ticks <- time.Time{}:
		case <-time.After(patience):
			t.Fatal("it ended with the context of the start")
		}
	}
	for range 30 { // of two that are ready a select takes any
		tick()
		receive(t, queue.raised)
	}
	raising := make(chan struct{})
	var ended atomic.Bool
	queue.raising = func(ctx context.Context) {
		queue.raising = nil // that of Stop
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("there is no limit to the time of a call")
		}
		close(raising)
		<-ctx.Done()
		for range 1000 {
			runtime.Gosched()
		}
		ended.Store(true)
	}
	tick()
	receive(t, raising)
	h.Stop(t.Context())
	if !ended.Load() {
		t.Error("Stop returned while a call was under way")
	}
}
