package streams

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// cacheBytes is the default of Cache.Bytes: some 65,000 devices for which nothing waits, or some 20,000 messages of 800
	// bytes. The garbage collector may take as much again.
	cacheBytes = 24 << 20
	// queueBytes is the default of Cache.QueueBytes: some 1,000 messages of 800 bytes, ten responses.
	queueBytes = 1 << 20
	// deviceBytes is what a device without messages takes beside its IDs, measured.
	deviceBytes = 320
)

// Cache is a storage.Store that answers Messages from memory as far as it holds the device's queue, and asks the store below it
// otherwise. It holds those of the devices that were read last, from what the store answered on, and adds to them what it is told
// by Committed. It gives the same answers as the store, provided that
//   - every call for the store goes through it,
//   - Committed is told of every batch that is stored, and
//   - nobody else writes to the store: from a Lock's Check that fails, and a Commit that is fenced, until Claim or the next
//     Committed, it asks the store alone.
//
// Contents that it returns are shared: they must not be written to. Its methods are safe for concurrent use.
type Cache struct {
	storage.Store

	// Bytes bounds what the cache holds, and QueueBytes what it holds of one device's messages. They are set before the
	// first use.
	Bytes, QueueBytes int64
	// Observe is told of each read up to a position that can be handed out whether it was answered from memory alone; nil
	// means that nobody is. It is set before the first use.
	Observe func(fromMemory bool)

	mu     sync.Mutex
	queues *simplelru.LRU[types.Device, *queue] // by when they were read last
	bytes  int64
	ours   bool           // nobody else writes to the store
	last   types.Position // every message up to it is in the store, and none will be added
	// ahead says that messages were deleted that may be of a batch of which Committed will be told next.
	ahead bool
}

// NewCache returns an empty Cache, which asks the store alone until Claim.
func NewCache(store storage.Store) (*Cache, error) {
	c := &Cache{Store: store, Bytes: cacheBytes, QueueBytes: queueBytes}
	var err error
	c.queues, err = simplelru.NewLRU(math.MaxInt, func(device types.Device, q *queue) { c.bytes -= weight(device, q) })
	return c, err
}

func weight(device types.Device, q *queue) int64 {
	return deviceBytes + int64(len(device.UserID)+len(device.DeviceID)) + q.bytes
}

// Messages implements storage.Store.
func (c *Cache) Messages(ctx context.Context, device types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error) {
	r := read{device: device, after: after, through: through, limit: limit, except: except}
	if !c.lookUp(&r) {
		return c.Store.Messages(ctx, device, after, through, limit, except)
	}
	if after >= r.from {
		return r.known, nil
	}
	// One more than the limit tells whether these are all.
	loaded, err := c.Store.Messages(ctx, device, after, r.from, limit+1, nil)
	if err != nil {
		return nil, err
	}
	if len(loaded) <= limit {
		c.learn(&r, loaded)
	}
	found := slices.Concat(loaded[:upTo(loaded, through)], r.known)
	return found[:min(len(found), limit)], nil
}

// read is one call of Messages, with what the cache knew when it began: the messages above from.
type read struct {
	device         types.Device
	after, through types.Position
	limit          int
	except         []string

	queue     *queue
	from      types.Position
	deletions int
	known     []types.Message
}

// lookUp returns false if the read is to be left to the store.
func (c *Cache) lookUp(r *read) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.through > c.last || r.limit <= 0 {
		return false
	}
	if !c.ours {
		c.observe(false)
		return false
	}
	q, held := c.queues.Get(r.device)
	if !held {
		// From here on Committed adds to it. What is up to last can be asked for.
		q = &queue{from: c.last}
		c.queues.Add(r.device, q)
		c.bytes += weight(r.device, q)
		c.shrink()
	}
	c.observe(r.after >= q.from)
	if r.after < q.from && len(r.except) > 0 {
		return false // the answer doesn't say what else there is
	}
	r.queue, r.from, r.deletions = q, q.from, q.deletions
	r.known = q.read(r.after, r.through, r.limit, r.except)
	return true
}

func (c *Cache) observe(fromMemory bool) {
	if c.Observe != nil {
		c.Observe(fromMemory)
	}
}

// learn adds what the store has between the positions that the read began at and the cache knew from, unless it may be out
// of date.
func (c *Cache) learn(r *read, loaded []types.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q, more := r.queue, size(loaded...)
	if held, _ := c.queues.Peek(r.device); held != q || q.from != r.from || q.deletions != r.deletions || q.bytes+more > c.QueueBytes {
		return
	}
	q.precede(r.after, loaded)
	c.bytes += more
	c.shrink()
}

// Committed tells of a batch that is stored. It must be called for each, in their order, before any of the batch's positions is
// asked for.
func (c *Cache) Committed(batch storage.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.ours = batch.Last, true // the store has accepted it, so nobody else has claimed it
	var cloned cloner
	for i := range batch.Deliveries {
		d := &batch.Deliveries[i]
		for j := range d.Copies {
			device := d.Copies[j].Device
			q, held := c.queues.Peek(device)
			switch {
			case !held:
			case c.ahead:
				c.queues.Remove(device)
			default:
				c.add(q, cloned.message(d, j))
			}
		}
	}
	c.ahead = false
	c.shrink()
}

func (c *Cache) add(q *queue, m types.Message) {
	before := q.bytes
	q.add(m)
	if q.bytes > c.QueueBytes {
		q.forgetOldest(c.QueueBytes / 2) // not a single one each time
	}
	c.bytes += q.bytes - before
}

func (c *Cache) shrink() {
	for c.bytes > c.Bytes {
		c.queues.RemoveOldest()
	}
}

// Acknowledge implements storage.Store. The store is not asked where the cache knows that there is nothing to delete.
func (c *Cache) Acknowledge(ctx context.Context, acknowledgements []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	covering, last := c.covering(acknowledgements)
	if len(covering) == 0 && limit > 0 {
		return nil, nil
	}
	acknowledged, err := c.Store.Acknowledge(ctx, covering, limit)
	unfinished := make(map[types.Device]struct{})
	for _, a := range acknowledged {
		if a.Unfinished {
			unfinished[a.Device] = struct{}{}
		}
	}
	for _, a := range covering {
		_, more := unfinished[a.Device]
		c.deleted(a, last, err == nil && !more)
	}
	return acknowledged, err
}

// covering returns those of the acknowledgements that may cover messages, and the last position.
func (c *Cache) covering(acknowledgements []storage.Acknowledgement) ([]storage.Acknowledgement, types.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	covering := make([]storage.Acknowledgement, 0, len(acknowledgements))
	for _, a := range acknowledgements {
		q, held := c.queues.Peek(a.Device)
		if !held || a.Through > c.last || q.from > 0 || upTo(q.messages, a.Through) > 0 {
			covering = append(covering, a)
		}
	}
	return covering, c.last
}

// Purge implements storage.Store.
func (c *Cache) Purge(ctx context.Context, device types.Device, through types.Position) (int, error) {
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	purged, err := c.Store.Purge(ctx, device, through)
	c.deleted(storage.Acknowledgement{Device: device, Through: through}, last, err == nil)
	return purged, err
}

// deleted follows a deletion that began when last was the last position, and may not have done all.
func (c *Cache) deleted(a storage.Acknowledgement, last types.Position, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.Through > last {
		// Of the messages above last some may have been deleted, others stored since.
		c.ahead, all = true, false
	}
	q, held := c.queues.Peek(a.Device)
	switch {
	case !held:
	case !all:
		c.queues.Remove(a.Device)
	default:
		before := q.bytes
		q.deleted(a.Through)
		c.bytes += q.bytes - before
	}
}

// Claim implements storage.Store. The cache is empty after it: who had claimed the store before may have changed everything.
func (c *Cache) Claim(ctx context.Context, writer string, atLeast types.Position) (types.Position, error) {
	c.distrust()
	last, err := c.Store.Claim(ctx, writer, atLeast)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.ours = last, true
	return last, nil
}

// Commit implements storage.Store. Who calls it tells Committed once it is known that the batch is stored.
func (c *Cache) Commit(ctx context.Context, batch storage.Batch) error {
	err := c.Store.Commit(ctx, batch)
	if errors.Is(err, storage.ErrFenced) {
		c.distrust()
	}
	return err
}

// Lock implements storage.Store.
func (c *Cache) Lock(ctx context.Context) (storage.Lock, error) {
	lock, err := c.Store.Lock(ctx)
	if err != nil {
		return nil, err
	}
	return watchedLock{lock, c}, nil
}

type watchedLock struct {
	storage.Lock
	cache *Cache
}

func (l watchedLock) Check(ctx context.Context) error {
	err := l.Lock.Check(ctx)
	if err != nil {
		l.cache.distrust()
	}
	return err
}

// distrust forgets everything.
func (c *Cache) distrust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ours = false
	c.queues.Purge()
}
