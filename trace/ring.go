package trace

import (
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	// blockBytes is how much memory is taken at a time. It has room for some 300 records.
	blockBytes = 64 << 10
	// bytesEach is what a record may take on average. Nearly all take less; the longest, which nobody needs to
	// send, take nine times as much, and then fewer are kept.
	bytesEach = 256
)

// Options are what a Ring works with.
type Options struct {
	// Capacity is how many records are kept, the last ones. Zero means none: they are logged alone.
	Capacity int
	Log      *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Ring keeps the last records, and logs each at debug level. It is safe for concurrent use.
//
// It takes its memory as it fills. 50,000 records of usual messages take 7 MiB, and no others more than 13 MiB; 1,000,000 take
// 140 MiB, and no more than 245. The garbage collector reads nothing of it. Texts are cut to 255 bytes; records with long
// ones take the room of others, of which fewer are kept then.
type Ring struct {
	Options
	maxBlocks int

	mu     sync.Mutex
	blocks []block // the oldest first; records are added to the last
	kept   int     // records in blocks
	start  time.Time
	lost   bool // records before those in blocks were dropped
}

// block holds encoded records. What was written to it never changes, so that it can be read without the lock up to the length
// that it had under the lock.
type block struct {
	data    []byte
	records int
}

// New returns a Ring without records.
func New(options Options) *Ring {
	if options.Now == nil {
		options.Now = time.Now
	}
	return &Ring{
		Options:   options,
		maxBlocks: (options.Capacity*bytesEach+blockBytes-1)/blockBytes + 1,
		start:     options.Now(),
	}
}

// Record keeps the records, all as of the present time.
func (r *Ring) Record(records ...Record) {
	if r.Capacity > 0 {
		r.keep(records)
	}
	if r.Log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		for i := range records {
			r.Log.WithFields(records[i].fields()).Debug("to_device: trace")
		}
	}
}

func (r *Ring) keep(records []Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.Now()
	for i := range records {
		b := r.room(records[i].maxSize())
		b.data = records[i].appendTo(b.data, at)
		b.records++
		r.kept++
	}
}

// room returns the block to add so many bytes to. The caller has mu.
func (r *Ring) room(bytes int) *block {
	if n := len(r.blocks); n == 0 || cap(r.blocks[n-1].data)-len(r.blocks[n-1].data) < bytes {
		r.drop()
		r.blocks = append(r.blocks, block{data: make([]byte, 0, blockBytes)})
	}
	return &r.blocks[len(r.blocks)-1]
}

// drop makes room for a block. The caller has mu.
func (r *Ring) drop() {
	n := 0
	for n < len(r.blocks) && (len(r.blocks)-n >= r.maxBlocks || r.kept-r.blocks[n].records >= r.Capacity) {
		r.kept -= r.blocks[n].records
		r.lost = true
		n++
	}
	r.blocks = slices.Delete(r.blocks, 0, n)
}

// contents is what a Ring holds at one moment.
type contents struct {
	blocks []block
	over   int // records at the beginning that are over the capacity
	start  time.Time
	lost   bool
}

func (r *Ring) contents() contents {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := max(r.kept-r.Capacity, 0)
	return contents{blocks: slices.Clone(r.blocks), over: over, start: r.start, lost: r.lost || over > 0}
}

// each passes the records to f, the oldest first, until it returns false. What f gets is valid until it returns.
func (c *contents) each(f func(*encoded) bool) {
	var e encoded
	skip := c.over
	for _, b := range c.blocks {
		for data := b.data; len(data) > 0; {
			data = e.read(data)
			if skip > 0 {
				skip--
				continue
			}
			if !f(&e) {
				return
			}
		}
	}
}
