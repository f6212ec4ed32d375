package todevicemodule_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// counting counts what a /sync asks the database.
type counting struct {
	storage.Store
	reads, deletions atomic.Int64
}

func (c *counting) Messages(ctx context.Context, device types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error) {
	c.reads.Add(1)
	return c.Store.Messages(ctx, device, after, through, limit, except)
}

func (c *counting) Acknowledge(ctx context.Context, acknowledgements []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	c.deletions.Add(1)
	return c.Store.Acknowledge(ctx, acknowledgements, limit)
}

// syncing is a device that follows its tokens.
type syncing struct {
	*observed
	*testing.T
	store *counting
	since types.Position
}

func startSyncing(t *testing.T, open testdb.Open) *syncing {
	t.Helper()
	s := &syncing{T: t, store: &counting{Store: open(t)}}
	s.observed = startObserved(t, func(testing.TB) *testdb.Store { return &testdb.Store{Store: s.store} }, todevicemodule.DefaultConfig())
	return s
}

// wantSync does what a /sync does, and checks how many messages come and how often the database is asked for them.
func (s *syncing) wantSync(messages int, queries int64) {
	s.Helper()
	before := s.store.reads.Load()
	since := s.SinceForSync(s.since)
	s.AcknowledgeSync(observedDevice, since)
	got, next, err := s.ReadForSync(s.Context(), observedDevice, since, s.LatestPosition(), nobodyIgnored)
	if err != nil || len(got) != messages {
		s.Errorf("%d messages came, want %d; %v", len(got), messages, err)
	}
	if asked := s.store.reads.Load() - before; asked != queries {
		s.Errorf("the database was asked %d times, want %d", asked, queries)
	}
	s.since = next
}

// waitUntilDeleted waits until no acknowledged message waits for its deletion.
func (s *syncing) waitUntilDeleted() {
	s.Helper()
	for pending := -1.0; pending != 0; {
		if s.Context().Err() != nil {
			s.Fatal("acknowledged messages were not deleted")
		}
		time.Sleep(time.Millisecond)
		pending = s.gauge("acknowledgements_pending")
	}
}

func (s *syncing) gauge(name string) float64 {
	s.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		s.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "dendrite_todevice_"+name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	s.Fatalf("there is no %s", name)
	return 0
}

// What a /sync asks the database does not depend on the machine.
func TestQueriesOfASync(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		before := startSyncing(t, open)
		for n := range 100 {
			before.send(t, n)
		}
		if err := before.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		s := startSyncing(t, open)
		s.wantSync(100, 1) // what waited when the server started
		s.wantSync(0, 0)
		s.send(t, 100)
		s.wantSync(1, 0)
		s.wantSync(0, 0)
		s.waitUntilDeleted()
		deletions := s.store.deletions.Load()
		for range 3 {
			s.wantSync(0, 0) // there is nothing to delete any more
			s.waitUntilDeleted()
		}
		if asked := s.store.deletions.Load() - deletions; asked != 0 {
			t.Errorf("the database was asked %d times to delete nothing", asked)
		}
		if hits, misses := s.counter(t, "queue_cache_reads_total", "hit"), s.counter(t, "queue_cache_reads_total", "miss"); hits != 2 || misses != 1 {
			t.Errorf("%v reads are counted as hits, %v as misses", hits, misses)
		}
	})
}

// What is in memory goes with the device.
func TestDeletedQueueIsGoneFromMemory(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		exists := &atomic.Bool{}
		exists.Store(true)
		store := open(t)
		module := startedWith(t, changingDevice{oneDevice{store: store}, exists})
		read := func() int {
			messages, _, err := module.ReadForSync(t.Context(), observedDevice, 0, module.LatestPosition(), nobodyIgnored)
			if err != nil {
				t.Fatal(err)
			}
			return len(messages)
		}
		o := &observed{Module: module}
		o.send(t, 1)
		read()
		o.send(t, 2)
		if n := read(); n != 2 {
			t.Fatalf("%d messages wait", n)
		}
		err := module.DeleteDevices(t.Context(), observedDevice.UserID, func() error { exists.Store(false); return nil })
		if n := read(); err != nil || n != 0 {
			t.Errorf("%d messages are left, %v", n, err)
		}
		err = module.CreateDevice(t.Context(), observedDevice.UserID, observedDevice.DeviceID, func() error { exists.Store(true); return nil })
		if n := read(); err != nil || n != 0 {
			t.Errorf("%d messages are there for the new device, %v", n, err)
		}
		o.send(t, 3)
		if n := read(); n != 1 {
			t.Errorf("%d messages came", n)
		}
		call(t, module, "todevice_purge_device", map[string]string{"userID": observedDevice.UserID, "deviceID": observedDevice.DeviceID})
		if n := read(); n != 0 {
			t.Errorf("%d messages are left after a purge", n)
		}
	})
}

// changingDevice is a host whose users have their device or not.
type changingDevice struct {
	oneDevice
	exists *atomic.Bool
}

func (h changingDevice) UserDevices(ctx context.Context, userID string) ([]string, error) {
	if userID == observedDevice.UserID && !h.exists.Load() {
		return nil, nil
	}
	return h.oneDevice.UserDevices(ctx, userID)
}
