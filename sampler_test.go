package todevicemodule

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// slowInspector is a store of which each look takes a while.
type slowInspector struct {
	storage.Inspector
	takes time.Duration

	mu     sync.Mutex
	err    error
	looks  []time.Time
	totals storage.Totals
	after  map[storage.Order]*storage.Queue
}

func (s *slowInspector) Totals(ctx context.Context) (storage.Totals, error) {
	s.mu.Lock()
	s.looks = append(s.looks, time.Now())
	totals, err := s.totals, s.err
	s.mu.Unlock()
	select {
	case <-time.After(s.takes):
		return totals, err
	case <-ctx.Done():
		return storage.Totals{}, ctx.Err()
	}
}

func (s *slowInspector) CountQueues(_ context.Context, order storage.Order, after *storage.Queue, _ int) ([]storage.Queue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after[order] = after
	return nil, nil
}

func (s *slowInspector) become(messages int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Messages, s.err = messages, err
}

func (s *slowInspector) lookedAt() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.looks)
}

func (s *slowInspector) askedAfter(order storage.Order) *storage.Queue {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.after[order]
}

// lastImported is the last position that the samplers of these tests take for one of the host's own.
const lastImported types.Position = 77

// allotted takes every position for one that the module allotted.
func allotted(p types.Position) (time.Time, bool) { return p.Time(), true }

// sampling runs a test with a sampler, whose first look has been taken.
func sampling(t *testing.T, store *slowInspector, test func(t *testing.T, registry *prometheus.Registry)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		m := newMetrics(allotted)
		registry := prometheus.NewRegistry()
		if err := m.register(registry); err != nil {
			t.Fatal(err)
		}
		store.after = make(map[storage.Order]*storage.Queue)
		s := newSampler(store, func() types.Position { return lastImported }, m, logrus.NewEntry(log))
		s.start(t.Context())
		defer s.stop()
		synctest.Wait()
		test(t, registry)
	})
}

func gauge(t *testing.T, registry *prometheus.Registry, series string) (value float64, there bool) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	value, there = allSeries(families)[series]
	return value, there
}

func TestSamplerLooksAtTheStartAndEveryMinute(t *testing.T) {
	store := &slowInspector{totals: storage.Totals{Messages: 3}}
	sampling(t, store, func(t *testing.T, registry *prometheus.Registry) {
		start := time.Now()
		if n, there := gauge(t, registry, "queue_messages"); n != 3 || !there {
			t.Errorf("at the start %v messages wait, %v", n, there)
		}
		if at, _ := gauge(t, registry, "last_sample_timestamp_seconds"); at != float64(start.Unix()) {
			t.Errorf("the last sample was taken at %v, want %v", at, start.Unix())
		}
		time.Sleep(10*time.Minute + time.Second)
		if looks := store.lookedAt(); len(looks) != 11 || looks[10].Sub(start) != 10*time.Minute {
			t.Errorf("the looks were at %v", looks)
		}
	})
}

// A store that is slow to look at is looked at for a twentieth of the time at the most.
func TestSamplerRestsAfterASlowLook(t *testing.T) {
	store := &slowInspector{takes: 10 * time.Second}
	sampling(t, store, func(t *testing.T, registry *prometheus.Registry) {
		if _, there := gauge(t, registry, "queue_messages"); there {
			t.Error("there are values before the first look has ended")
		}
		if at, there := gauge(t, registry, "last_sample_timestamp_seconds"); at != float64(time.Now().Unix()) || !there {
			t.Errorf("the last sample was taken at %v, %v; want the start", at, there)
		}
		time.Sleep(431 * time.Second)
		looks := store.lookedAt()
		for i, want := range []time.Duration{0, 210 * time.Second, 420 * time.Second} {
			if i >= len(looks) || looks[i].Sub(looks[0]) != want {
				t.Fatalf("the looks were at %v", looks)
			}
		}
		if took, _ := gauge(t, registry, "sample_duration_seconds"); took != 10 {
			t.Errorf("the look took %v s", took)
		}
	})
}

func TestFailedSampleTakesTheValuesAway(t *testing.T) {
	store := &slowInspector{totals: storage.Totals{Messages: 3}}
	sampling(t, store, func(t *testing.T, registry *prometheus.Registry) {
		first, _ := gauge(t, registry, "last_sample_timestamp_seconds")
		store.become(3, errors.New("away"))
		time.Sleep(61 * time.Second)
		if n, there := gauge(t, registry, "queue_messages"); there {
			t.Errorf("%v messages are shown after a failure", n)
		}
		if at, there := gauge(t, registry, "last_sample_timestamp_seconds"); at != first || !there {
			t.Errorf("the last sample was taken at %v, want %v", at, first)
		}
		if n, _ := gauge(t, registry, `database_failures_total{operation="sample"}`); n != 1 {
			t.Errorf("%v failures are counted", n)
		}
		store.become(4, nil)
		time.Sleep(time.Minute)
		if n, _ := gauge(t, registry, "queue_messages"); n != 4 {
			t.Errorf("then %v messages are shown", n)
		}
	})
}

// A look that does not end is given up, and the next one comes.
func TestSamplerGivesUpALookThatHangs(t *testing.T) {
	store := &slowInspector{takes: time.Hour}
	sampling(t, store, func(t *testing.T, registry *prometheus.Registry) {
		time.Sleep(time.Minute + time.Second)
		if n, _ := gauge(t, registry, `database_failures_total{operation="sample"}`); n != 1 {
			t.Errorf("%v failures are counted", n)
		}
		time.Sleep(20 * time.Minute)
		if looks := store.lookedAt(); len(looks) != 2 {
			t.Errorf("the looks were at %v", looks)
		}
	})
}

func TestStopEndsALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowInspector{takes: time.Hour, after: make(map[storage.Order]*storage.Queue)}
		m := newMetrics(allotted)
		s := newSampler(store, func() types.Position { return lastImported }, m, logrus.NewEntry(logrus.New()))
		s.start(t.Context())
		synctest.Wait()
		before := time.Now()
		s.stop()
		if waited := time.Since(before); waited != 0 || len(store.lookedAt()) != 1 {
			t.Errorf("stopping waited %s for the look", waited)
		}
		if n := testutil.ToFloat64(m.failures.byValue[failedSample]); n != 0 {
			t.Errorf("a look that was ended by the stop counts as %v failures", n)
		}
	})
}

func TestSampleIsShown(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newMetrics(allotted)
	if err := m.register(registry); err != nil {
		t.Fatal(err)
	}
	m.gauges.set(fullSample())
	wantSeries(t, registry, map[string]float64{
		"queues":                             7,
		"queue_messages":                     70,
		"oldest_message_age_seconds":         100,
		`largest_queue_messages{rank="1"}`:   50,
		`largest_queue_messages{rank="5"}`:   46,
		`oldest_queue_age_seconds{rank="1"}`: 100,
		`oldest_queue_age_seconds{rank="5"}`: 96,
		`outbox_edus{state="waiting"}`:       11,
		`outbox_edus{state="refused"}`:       12,
		`outbox_edus{state="set_aside"}`:     13,
		"outbox_bytes":                       1100,
		"outbox_oldest_age_seconds":          3600,
		"sample_duration_seconds":            2,
		"last_sample_timestamp_seconds":      1_700_000_000,
	})
	m.gauges.set(sample{at: time.UnixMicro(1_700_000_000_000_000)})
	wantSeries(t, registry, map[string]float64{
		"queues": 0, "queue_messages": 0, "oldest_message_age_seconds": 0, "outbox_oldest_age_seconds": 0, `outbox_edus{state="waiting"}`: 0,
	})
	if n, there := gauge(t, registry, `largest_queue_messages{rank="1"}`); there {
		t.Errorf("an empty store shows a queue of %v messages", n)
	}
}

// When an imported message was stored is not known. A queue that begins with one is passed over by its age.
func TestQueuesWithoutAnAgeAreLeftOut(t *testing.T) {
	store := &slowInspector{}
	sampling(t, store, func(t *testing.T, _ *prometheus.Registry) {
		if after := store.askedAfter(storage.BySize); after != nil {
			t.Errorf("the largest queues are asked for after %v", after)
		}
		after := store.askedAfter(storage.ByAge)
		if after == nil {
			t.Fatal("the oldest queues are asked for from the beginning")
		}
		if *after != (storage.Queue{Oldest: lastImported}) {
			t.Errorf("the oldest queues are asked for after %+v", after)
		}
	})
}
