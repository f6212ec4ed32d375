package streams_test

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// What a cache holds of more devices, or of larger queues, than it has room for stays within what it may take.
func TestMemoryIsBounded(t *testing.T) {
	user := func(i int) types.Device {
		return types.Device{UserID: fmt.Sprintf("@user-%d:example.org", i), DeviceID: fmt.Sprintf("DEVICE%d", i)}
	}
	const devices = 100_000
	tests := map[string]func(c *cached){
		"devices for which nothing waits": func(c *cached) {
			for i := range devices {
				c.read(user(i))
			}
		},
		"devices for which a message waits": func(c *cached) {
			for i := range devices {
				c.read(user(i))
				c.send(user(i), 1, 50)
			}
		},
		"devices that do not fetch theirs": func(c *cached) {
			for i := range 100 {
				c.read(user(i))
			}
			for range 20 {
				for i := range 100 {
					c.send(user(i), 50, 800)
				}
			}
		},
		"devices that had many and fetched them": func(c *cached) {
			for i := range 3000 {
				c.read(user(i))
				c.send(user(i), 200, 20)
				if _, err := c.Acknowledge(t.Context(), []storage.Acknowledgement{{Device: user(i), Through: c.last - 1}}, 1000); err != nil {
					t.Fatal(err)
				}
			}
		},
		"large messages": func(c *cached) {
			c.read(bob)
			for range 100 {
				c.send(bob, 1, 2<<20)
				c.read(bob)
			}
		},
	}
	for name, fill := range tests {
		t.Run(name, func(t *testing.T) {
			before := heap()
			c := newCached(t, 0)
			fill(c)
			c.database.queues = nil
			taken := heap() - before
			counted, held, beyond := c.Counted()
			t.Logf("%d KiB are taken, %d KiB counted", taken>>10, counted>>10)
			if counted != held || beyond || counted > c.Bytes {
				t.Errorf("%d bytes are counted, %d held", counted, held)
			}
			if taken > c.Bytes*11/10 {
				t.Errorf("%d KiB are taken, more than %d", taken>>10, c.Bytes>>10)
			}
			runtime.KeepAlive(c)
		})
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held on to
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

func (c *cached) read(device types.Device) {
	c.Helper()
	if _, err := c.Messages(c.Context(), device, 0, c.last, 100, nil); err != nil {
		c.Fatal(err)
	}
}

// send tells of messages that no database has.
func (c *cached) send(device types.Device, messages, size int) {
	batch := storage.Batch{Writer: "writer", Previous: c.last}
	for range messages {
		c.last++
		batch.Deliveries = append(batch.Deliveries, storage.Delivery{
			Position: c.last, Sender: "@carol:x", Type: "m.type",
			Copies: []storage.Copy{{Device: device, Content: bytes.Repeat([]byte{' '}, size)}},
		})
	}
	batch.Last = c.last
	c.Committed(batch)
}
