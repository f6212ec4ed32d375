package streams_test

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var alice = types.Device{UserID: "@alice:x", DeviceID: "TABLET"}

// cached is a cache, its database and the last position.
type cached struct {
	*testing.T
	*streams.Cache
	database *database
	last     types.Position
}

// newCached returns a cache that was just claimed, over a database in which n messages wait for bob at the positions from 1.
func newCached(t *testing.T, n int) *cached {
	t.Helper()
	c := &cached{T: t, database: newDatabase()}
	for i := range n {
		c.database.queues[bob] = append(c.database.queues[bob], types.Message{Position: types.Position(i + 1), Sender: "@carol:x", Content: []byte(`{}`)})
	}
	var err error
	if c.Cache, err = streams.NewCache(c.database); err != nil {
		t.Fatal(err)
	}
	c.claim(types.Position(n) + 1)
	return c
}

func (c *cached) claim(atLeast types.Position) {
	c.Helper()
	var err error
	if c.last, err = c.Claim(c.Context(), "writer", atLeast); err != nil {
		c.Fatal(err)
	}
}

// store stores one message for the devices, of which nobody is told.
func (c *cached) store(content string, devices ...types.Device) storage.Batch {
	c.Helper()
	d := storage.Delivery{Position: c.last + 1, Sender: "@carol:x", Type: "m.type"}
	for _, device := range devices {
		d.Copies = append(d.Copies, storage.Copy{Device: device, Content: []byte(content)})
	}
	batch := storage.Batch{Writer: "writer", Previous: c.last, Last: c.last + types.Position(len(devices)), Deliveries: []storage.Delivery{d}}
	if err := c.Commit(c.Context(), batch); err != nil {
		c.Fatal(err)
	}
	c.last = batch.Last
	return batch
}

func (c *cached) commit(devices ...types.Device) {
	c.Helper()
	c.Committed(c.store(`{"n":1}`, devices...))
}

// wantRead reads what there is after a position, and checks it and how often the database was asked.
func (c *cached) wantRead(device types.Device, after types.Position, limit, queries int) []types.Message {
	c.Helper()
	before := c.database.reads
	got, err := c.Messages(c.Context(), device, after, c.last, limit, nil)
	if err != nil {
		c.Fatal(err)
	}
	if asked := c.database.reads - before; asked != queries {
		c.Errorf("the database was asked %d times, want %d", asked, queries)
	}
	want := c.database.find(device, after, c.last, limit, nil)
	if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
		c.Errorf("after %d: %v, want %v", after, positions(got), positions(want))
	}
	return got
}

// wantAcknowledged acknowledges, and checks how often the database was asked.
func (c *cached) wantAcknowledged(device types.Device, through types.Position, queries int) {
	c.Helper()
	before := c.database.deletions
	if _, err := c.Acknowledge(c.Context(), []storage.Acknowledgement{{Device: device, Through: through}}, 1000); err != nil {
		c.Fatal(err)
	}
	if asked := c.database.deletions - before; asked != queries {
		c.Errorf("the database was asked %d times to delete, want %d", asked, queries)
	}
}

// An idle device asks the database once, whatever happens to others and however old its token becomes.
func TestIdleDeviceAsksTheDatabaseOnce(t *testing.T) {
	c := newCached(t, 0)
	since := c.last
	c.commit(alice)
	c.wantRead(bob, since, 100, 1)
	for range 10 {
		c.commit(alice)
		c.wantRead(bob, since, 100, 0)
		c.wantRead(bob, c.last-1, 100, 0)
	}
	// What it acknowledges each time is deleted once. From then on any token will do.
	c.wantAcknowledged(bob, since, 1)
	c.wantAcknowledged(bob, since, 0)
	c.wantAcknowledged(bob, c.last, 0)
	c.wantRead(bob, 0, 100, 0)
}

func TestHandOverToAnActiveDeviceAsksNothing(t *testing.T) {
	c := newCached(t, 0)
	since := c.last
	c.wantRead(bob, since, 100, 0) // nothing can be there yet
	for range 3 {
		c.commit(bob, alice)
		if got := c.wantRead(bob, since, 100, 0); len(got) != 1 {
			t.Fatalf("%d messages", len(got))
		}
		since = c.last
		c.wantAcknowledged(bob, since, 1)
		c.wantRead(bob, since, 100, 0)
	}
}

func TestBacklogIsLoadedOnce(t *testing.T) {
	c := newCached(t, 100)
	c.commit(alice)
	c.wantRead(bob, 0, 100, 1)
	c.wantRead(bob, 0, 100, 0)
	c.commit(bob)
	c.wantRead(bob, 0, 100, 0)
	c.wantRead(bob, 100, 100, 0)
	c.wantRead(bob, 50, 100, 0)
}

// Of a longer one each part is read from the database, and nothing twice.
func TestLongBacklogIsNotKept(t *testing.T) {
	c := newCached(t, 250)
	for _, after := range []types.Position{0, 100, 200} {
		c.wantRead(bob, after, 100, 1)
	}
	c.wantRead(bob, 200, 100, 0)
	c.wantRead(bob, 199, 100, 1) // with what is known from 200 on
	c.wantRead(bob, 199, 100, 0)
}

// A part of the queue is known, and the rest read.
func TestKnownMessagesFollowThoseOfTheDatabase(t *testing.T) {
	c := newCached(t, 5)
	c.wantRead(bob, 5, 100, 1)
	c.commit(bob)
	c.wantRead(bob, 2, 4, 1)
	c.wantRead(bob, 2, 3, 0)
	c.wantRead(bob, 0, 3, 1)
}

func TestMessagesOfADeletedDeviceAreGone(t *testing.T) {
	c := newCached(t, 3)
	c.wantRead(bob, 0, 100, 1)
	inFlight := c.store(`{}`, bob, alice)
	c.wantRead(alice, 0, 100, 1)
	if _, err := c.Purge(t.Context(), bob, math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	// The device is there again before the writer has told of what it stored.
	if got, err := c.Messages(t.Context(), bob, 0, inFlight.Previous, 100, nil); err != nil || len(got) != 0 {
		t.Errorf("%v are left, %v", positions(got), err)
	}
	c.Committed(inFlight)
	if got := c.wantRead(bob, 0, 100, 1); len(got) != 0 {
		t.Errorf("%v came back", positions(got))
	}
	c.wantRead(alice, 0, 100, 1)
	c.commit(bob, alice)
	c.wantRead(bob, 0, 100, 0)
	c.wantRead(alice, 0, 100, 0)
}

// What is stored while a deletion is under way may lie below the position up to which it deletes.
func TestDeletionSparesWhatIsStoredMeanwhile(t *testing.T) {
	for name, remove := range map[string]func(c *cached, through types.Position) error{
		"purge": func(c *cached, through types.Position) error {
			_, err := c.Purge(c.Context(), bob, through)
			return err
		},
		"acknowledgement": func(c *cached, through types.Position) error {
			_, err := c.Acknowledge(c.Context(), []storage.Acknowledgement{{Device: bob, Through: through}}, 10)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCached(t, 3)
			c.wantRead(bob, 0, 100, 1)
			c.database.deleted = func() { c.commit(bob) }
			if err := remove(c, c.last+1); err != nil {
				t.Fatal(err)
			}
			if got := c.wantRead(bob, 0, 100, 1); len(got) != 1 {
				t.Errorf("%d messages are left", len(got))
			}
		})
	}
}

// An answer of the database is not learnt if messages were deleted since it was given.
func TestAnswerFromBeforeADeletionIsNotLearnt(t *testing.T) {
	c := newCached(t, 5)
	c.commit(alice)
	c.database.answered = func() {
		c.database.answered = func() {}
		c.wantAcknowledged(bob, 3, 1)
	}
	if got, err := c.Messages(t.Context(), bob, 0, c.last, 100, nil); err != nil || len(got) != 5 {
		t.Fatalf("%d messages, %v", len(got), err)
	}
	if got := c.wantRead(bob, 0, 100, 1); len(got) != 2 {
		t.Errorf("%v are left", positions(got))
	}
}

func TestUnfinishedDeletions(t *testing.T) {
	c := newCached(t, 5)
	c.wantRead(bob, 0, 100, 1)
	acknowledgement := []storage.Acknowledgement{{Device: bob, Through: 5}}
	if _, err := c.Acknowledge(t.Context(), acknowledgement, 2); err != nil {
		t.Fatal(err)
	}
	c.wantRead(bob, 0, 100, 1)
	c.database.failing = errAway
	if n, err := c.Purge(t.Context(), bob, 5); n != 1 || err == nil {
		t.Fatal(n, err)
	}
	c.database.failing = nil
	c.wantRead(bob, 0, 100, 1)
}

// While another process may be at work the database alone is asked, and nothing learnt.
func TestStoreThatIsNotOurs(t *testing.T) {
	wantNothingKept := func(c *cached) {
		t.Helper()
		for range 2 {
			c.database.queues[bob] = append(c.database.queues[bob], types.Message{Position: types.Position(len(c.database.queues[bob]) + 1)})
			c.wantRead(bob, 0, 100, 1)
		}
	}
	lose := func(c *cached) {
		t.Helper()
		lock, err := c.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err = lock.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.wantRead(bob, 0, 100, 0)
		c.database.lockLost = storage.ErrLocked
		if err = lock.Check(t.Context()); err == nil {
			t.Fatal("the lock is held")
		}
	}
	fence := func(c *cached) {
		t.Helper()
		batch := storage.Batch{Writer: "writer", Previous: c.last + 5, Last: c.last + 6}
		if err := c.Commit(t.Context(), batch); err == nil {
			t.Fatal("the commit was not fenced")
		}
	}
	for _, lost := range []func(c *cached){lose, fence} {
		c := newCached(t, 30)
		c.wantRead(bob, 0, 100, 1)
		lost(c)
		wantNothingKept(c)
		c.commit(alice) // is accepted, so the store was ours all the time
		c.wantRead(bob, 0, 100, 1)
		c.wantRead(bob, 0, 100, 0)
		fence(c)
		wantNothingKept(c)
		c.claim(c.last)
		c.wantRead(bob, 0, 100, 1)
		c.wantRead(bob, 0, 100, 0)
		c.database.queues[bob] = nil // by another process, unnoticed
		c.claim(c.last)
		c.wantRead(bob, 0, 100, 1)
		c.database.failing = errAway
		if _, err := c.Claim(t.Context(), "writer", c.last); err == nil {
			t.Fatal("claimed")
		}
		c.database.failing = nil
		wantNothingKept(c)
	}
}

func TestLockThatIsNotGiven(t *testing.T) {
	c := newCached(t, 0)
	c.database.lockLost = storage.ErrLocked
	if lock, err := c.Lock(t.Context()); err == nil || lock != nil {
		t.Errorf("%v, %v", lock, err)
	}
}

// The devices that were read last are kept, whatever is sent to the others.
func TestDevicesThatWereReadLastAreKept(t *testing.T) {
	c := newCached(t, 0)
	c.Bytes = 1100 // three devices
	device := func(i int) types.Device { return types.Device{UserID: "@u", DeviceID: fmt.Sprint(i)} }
	for i := range 3 {
		c.wantRead(device(i), 0, 100, 1)
	}
	c.wantRead(device(0), 0, 100, 0)
	c.commit(device(1)) // makes no room for itself
	var kept []bool
	for i := range 3 {
		kept = append(kept, c.Holds(device(i)))
	}
	if !slices.Equal(kept, []bool{true, false, true}) {
		t.Errorf("kept: %v", kept)
	}
}

// Copies of one content are one in memory, and none is a part of what it was sent with.
func TestContentsInMemory(t *testing.T) {
	c := newCached(t, 0)
	since := c.last
	c.wantRead(bob, since, 100, 0)
	c.wantRead(alice, since, 100, 0)
	request := []byte(`{"a":{"n":1},"b":{"n":2}}`)
	same, other := request[5:12], request[17:24]
	batch := c.store(`{}`, bob, alice)
	batch.Deliveries[0].Copies[0].Content, batch.Deliveries[0].Copies[1].Content = same, same
	c.Committed(batch)
	batch = c.store(`{}`, bob, alice)
	batch.Deliveries[0].Copies[0].Content, batch.Deliveries[0].Copies[1].Content = same, other
	c.Committed(batch)
	read := func(device types.Device) []types.Message {
		got, err := c.Messages(t.Context(), device, since, c.last, 100, nil)
		if err != nil || len(got) != 2 {
			t.Fatalf("%d messages, %v", len(got), err)
		}
		return got
	}
	bobs, alices := read(bob), read(alice)
	if &bobs[0].Content[0] != &alices[0].Content[0] {
		t.Error("copies of one content were copied")
	}
	if string(alices[1].Content) != `{"n":2}` || &alices[1].Content[0] == &other[0] || &bobs[0].Content[0] == &same[0] {
		t.Error("the contents are those of the request")
	}
}

// What a /sync costs beside the host's own part: nothing where nothing waits, and one slice where something does.
func TestAllocationsOfARead(t *testing.T) {
	c := newCached(t, 100)
	c.wantRead(alice, 0, 100, 1)
	c.wantRead(bob, 0, 100, 1)
	for device, want := range map[types.Device]float64{alice: 0, bob: 1} {
		allocations := testing.AllocsPerRun(100, func() { _, _ = c.Messages(t.Context(), device, 0, c.last, 100, nil) })
		if allocations != want {
			t.Errorf("%v allocations for %v, want %v", allocations, device, want)
		}
	}
}

func TestAcknowledgingWithoutALimit(t *testing.T) {
	c := newCached(t, 0)
	_, _ = c.Acknowledge(t.Context(), nil, 0)
	if c.database.deletions != 1 {
		t.Error("the database did not get to refuse it")
	}
}
