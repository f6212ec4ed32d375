package streams_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// TestCacheModel compares each read with what the store alone answers, while anything happens in the middle of anything.
func TestCacheModel(t *testing.T) {
	fromMemory, asked := 0, 0
	for range 20 { // some of what must meet is rare
		rapid.Check(t, func(rt *rapid.T) {
			m := newCacheModel(rt)
			m.cache.Observe = func(hit bool) {
				if hit {
					fromMemory++
				} else {
					asked++
				}
			}
			for range 4 { // the longer, the more is known
				rt.Repeat(map[string]func(*rapid.T){
					"commit":      m.commit,
					"commit more": m.commit,
					"fail":        m.failCommit,
					"tell":        m.tell,
					"read":        m.read,
					"read on":     m.readLatest,
					"acknowledge": m.acknowledge,
					"purge":       m.purge,
					"other":       m.otherProcess,
					"check":       m.checkLock,
					"claim":       m.claimAgain,
					"in between":  m.inBetween,
					"":            m.check,
				})
			}
		})
	}
	if fromMemory == 0 || asked == 0 {
		t.Errorf("%d reads were answered from memory, %d by the database", fromMemory, asked)
	}
}

// cacheModel is a cache, its database, and a writer that tells the cache of what it has stored.
type cacheModel struct {
	database *database
	cache    *streams.Cache
	lock     storage.Lock
	devices  []types.Device
	last     types.Device // drawn

	writer    string
	previous  types.Position
	published types.Position
	told      *storage.Batch // stored, and not told of
	n         int

	// stale says that somebody else may have changed the database, of which the cache can't know yet.
	stale bool
	// distrusted says that the cache knows that somebody else may be at work.
	distrusted bool
	// deleting are the devices of which messages are being deleted: they may or may not be read.
	deleting map[types.Device]int
	nested   int
}

var modelSenders = []string{"@a:x", "@b:x", "@c:x"}

func newCacheModel(rt *rapid.T) *cacheModel {
	m := &cacheModel{database: newDatabase(), deleting: make(map[types.Device]int), writer: "first"}
	for i := range 3 {
		m.devices = append(m.devices, types.Device{UserID: fmt.Sprintf("@%d:x", i%2), DeviceID: fmt.Sprint(i)})
	}
	cache, err := streams.NewCache(m.database)
	must(rt, err)
	m.cache = cache
	m.cache.Bytes = rapid.SampledFrom([]int64{0, 1000, 3000, 1 << 20, 1 << 20, 1 << 20}).Draw(rt, "bytes")
	m.cache.QueueBytes = rapid.SampledFrom([]int64{0, 1000, 1 << 20, 1 << 20, 1 << 20}).Draw(rt, "queue bytes")
	m.lock, err = m.cache.Lock(rt.Context())
	must(rt, err)
	// What waited when the process began.
	for _, device := range m.devices {
		for range rapid.IntRange(0, 8).Draw(rt, "waiting") {
			m.n++
			m.database.queues[device] = append(m.database.queues[device], m.message(rt, types.Position(m.n)))
		}
	}
	m.claim(rt)
	m.published = m.previous
	return m
}

func must(rt *rapid.T, err error) {
	if err != nil {
		rt.Fatal(err)
	}
}

func (m *cacheModel) message(rt *rapid.T, position types.Position) types.Message {
	return types.Message{
		Position: position, Sender: rapid.SampledFrom(modelSenders).Draw(rt, "sender"), Type: "m.type", Content: fmt.Appendf(nil, `{"n":%d}`, position),
	}
}

func (m *cacheModel) claim(rt *rapid.T) {
	last, err := m.cache.Claim(rt.Context(), m.writer, types.Position(m.n))
	must(rt, err)
	m.previous, m.n, m.stale, m.distrusted = last, int(last), false, false
}

func (m *cacheModel) batch(rt *rapid.T) storage.Batch {
	batch := storage.Batch{Writer: m.writer, Previous: m.previous}
	for range rapid.IntRange(0, 3).Draw(rt, "deliveries") {
		d := storage.Delivery{Position: types.Position(m.n + 1), Sender: rapid.SampledFrom(modelSenders).Draw(rt, "sender"), Type: "m.type"}
		content := fmt.Appendf(nil, `{"n":%d}`, m.n)
		for _, device := range rapid.SliceOfNDistinct(rapid.SampledFrom(m.devices), 1, len(m.devices), rapid.ID[types.Device]).Draw(rt, "to") {
			m.n++
			if rapid.Bool().Draw(rt, "own content") {
				content = fmt.Appendf(nil, `{"m":%d}`, m.n)
			}
			d.Copies = append(d.Copies, storage.Copy{Device: device, Content: content})
		}
		batch.Deliveries = append(batch.Deliveries, d)
	}
	m.n++
	batch.Last = types.Position(m.n)
	return batch
}

// commit stores a batch; tell makes it known. A writer that finds itself fenced claims the store anew.
func (m *cacheModel) commit(rt *rapid.T) {
	m.tell(rt)
	batch := m.batch(rt)
	err := m.cache.Commit(rt.Context(), batch)
	switch {
	case errors.Is(err, storage.ErrFenced):
		m.stale, m.distrusted = false, true
		if rapid.Bool().Draw(rt, "read before the claim") {
			m.read(rt)
		}
		m.claim(rt)
	case err != nil:
		rt.Fatal(err)
	default:
		m.previous, m.told = batch.Last, &batch
	}
}

// failCommit is a commit that the database refuses. Its positions are gone.
func (m *cacheModel) failCommit(rt *rapid.T) { m.batch(rt) }

func (m *cacheModel) tell(*rapid.T) {
	if m.told == nil {
		return
	}
	m.cache.Committed(*m.told)
	for _, d := range m.told.Deliveries { // who sent it is free to use its memory for other things
		for _, c := range d.Copies {
			clear(c.Content)
		}
	}
	m.published, m.told, m.distrusted = m.told.Last, nil, false
}

// device returns the last one about every other time: what meets must be of one device.
func (m *cacheModel) device(rt *rapid.T) types.Device {
	if m.last == (types.Device{}) || rapid.Bool().Draw(rt, "another") {
		m.last = rapid.SampledFrom(m.devices).Draw(rt, "device")
	}
	return m.last
}

func (m *cacheModel) position(rt *rapid.T, name string) types.Position {
	return types.Position(rapid.IntRange(-1, m.n+3).Draw(rt, name))
}

func (m *cacheModel) read(rt *rapid.T) {
	through := min(m.position(rt, "through"), m.published)
	if rapid.IntRange(0, 9).Draw(rt, "unbounded") == 0 {
		through = math.MaxInt64
	}
	except := modelSenders[:rapid.IntRange(0, 2).Draw(rt, "ignored")]
	m.compare(rt, m.position(rt, "after"), through, rapid.IntRange(-1, 5).Draw(rt, "limit"), except)
}

func (m *cacheModel) readLatest(rt *rapid.T) {
	m.compare(rt, m.position(rt, "after"), m.published, 4, nil)
}

func (m *cacheModel) compare(rt *rapid.T, after, through types.Position, limit int, except []string) {
	device := m.device(rt)
	if m.database.failing = rapid.SampledFrom([]error{nil, nil, nil, errAway}).Draw(rt, "fails"); m.nested > 0 {
		m.database.failing = nil
	}
	unsure := m.stale || m.deleting[device] > 0
	want := m.database.find(device, after, through, limit, except)
	got, err := m.cache.Messages(rt.Context(), device, after, through, limit, except)
	failed := m.database.failing
	m.database.failing = nil
	if unsure || err != nil && errors.Is(err, failed) && len(got) == 0 {
		return
	}
	if err != nil || len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
		rt.Fatalf("%v after %d through %d, at most %d, without %v:\n got %v, error %v\nwant %v",
			device, after, through, limit, except, positions(got), err, positions(want))
	}
}

func positions(messages []types.Message) []string {
	var all []string
	for _, m := range messages {
		all = append(all, fmt.Sprint(m.Position, m.Sender, string(m.Content)))
	}
	return all
}

func (m *cacheModel) deletion(rt *rapid.T, devices []types.Device, f func()) {
	if m.database.failing = rapid.SampledFrom([]error{nil, nil, nil, errAway}).Draw(rt, "fails"); m.nested > 0 {
		m.database.failing = nil
	}
	for _, device := range devices {
		m.deleting[device]++
	}
	f()
	for _, device := range devices {
		m.deleting[device]--
	}
	m.database.failing = nil
}

func (m *cacheModel) acknowledge(rt *rapid.T) {
	devices := []types.Device{m.device(rt)}
	for _, device := range m.devices {
		if device != devices[0] && rapid.Bool().Draw(rt, "too") {
			devices = append(devices, device)
		}
	}
	var acknowledgements []storage.Acknowledgement
	waiting := 0
	for _, device := range devices {
		a := storage.Acknowledgement{Device: device, Through: m.position(rt, "through")}
		acknowledgements = append(acknowledgements, a)
		waiting += len(m.database.find(device, math.MinInt64, a.Through, math.MaxInt, nil))
	}
	limit := rapid.IntRange(1, 4).Draw(rt, "limit")
	m.deletion(rt, devices, func() {
		failing, asked := m.database.failing, m.database.deletions
		_, err := m.cache.Acknowledge(rt.Context(), acknowledgements, limit)
		if m.database.deletions == asked && waiting > 0 && !m.stale && m.nested == 0 {
			rt.Fatalf("%d messages were not deleted", waiting)
		}
		if err != nil && !errors.Is(err, failing) {
			rt.Fatal(err)
		}
	})
}

func (m *cacheModel) purge(rt *rapid.T) {
	device, through := m.device(rt), types.Position(math.MaxInt64)
	if rapid.Bool().Draw(rt, "some") {
		through = m.position(rt, "through")
	}
	m.deletion(rt, []types.Device{device}, func() {
		_, _ = m.cache.Purge(rt.Context(), device, through)
	})
}

// otherProcess takes the store over for a while, or restores a backup.
func (m *cacheModel) otherProcess(rt *rapid.T) {
	if rapid.IntRange(0, 9).Draw(rt, "rarely") > 0 {
		return
	}
	m.tell(rt)
	m.stale = !m.distrusted
	m.n++
	_, err := m.database.Claim(context.Background(), "other", types.Position(m.n))
	must(rt, err)
	for _, device := range m.devices {
		m.n++
		switch rapid.IntRange(0, 2).Draw(rt, "does") {
		case 0:
			m.database.queues[device] = nil
		case 1:
			m.database.queues[device] = append(slices.Clone(m.database.queues[device]), m.message(rt, types.Position(m.n)))
		}
	}
	m.database.state.Last = types.Position(m.n)
}

// checkLock notices that another process has the lock.
func (m *cacheModel) checkLock(rt *rapid.T) {
	if !m.stale {
		return
	}
	m.database.lockLost = storage.ErrLocked
	if err := m.lock.Check(rt.Context()); !errors.Is(err, storage.ErrLocked) {
		rt.Fatal(err)
	}
	m.database.lockLost = nil
	m.stale, m.distrusted = false, true
}

// claimAgain is what a writer does that finds the position record changed.
func (m *cacheModel) claimAgain(rt *rapid.T) {
	if m.stale || m.distrusted {
		m.tell(rt)
		m.claim(rt)
	}
}

// inBetween has things happen between the database's part of a call and the cache's.
func (m *cacheModel) inBetween(rt *rapid.T) {
	if m.nested > 0 {
		return
	}
	happens := func() {
		m.nested++
		defer func() { m.nested-- }()
		if m.nested > 1 {
			return
		}
		failing := m.database.failing
		defer func() { m.database.failing = failing }()
		m.database.failing = nil
		for range rapid.IntRange(1, 3).Draw(rt, "how many") {
			act := []func(*rapid.T){m.commit, m.tell, m.read, m.readLatest, m.acknowledge, m.purge}
			act[rapid.IntRange(0, len(act)-1).Draw(rt, "what")](rt)
		}
	}
	m.database.answered, m.database.deleted = happens, happens
	act := []func(*rapid.T){m.read, m.readLatest, m.acknowledge, m.purge}
	act[rapid.IntRange(0, len(act)-1).Draw(rt, "in the middle of")](rt)
	m.database.answered, m.database.deleted = func() {}, func() {}
}

func (m *cacheModel) check(rt *rapid.T) {
	counted, held, beyond := m.cache.Counted()
	if counted != held || counted > m.cache.Bytes || beyond {
		rt.Fatalf("%d bytes are held, %d counted, %d allowed, beyond the bound of one queue: %v", held, counted, m.cache.Bytes, beyond)
	}
}
