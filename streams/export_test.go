package streams

import "github.com/matrix-org/dendrite/todevicemodule/types"

// Counted returns how many bytes the cache takes itself to hold, and how many it does hold; and whether a device's messages are
// beyond their bound.
func (c *Cache) Counted() (counted, held int64, beyond bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, device := range c.queues.Keys() {
		q, _ := c.queues.Peek(device)
		held += deviceBytes + int64(len(device.UserID)+len(device.DeviceID)) + size(q.messages...)
		beyond = beyond || size(q.messages...) > c.QueueBytes
	}
	return c.bytes, held, beyond
}

// Holds reports whether the cache holds anything of a device's queue.
func (c *Cache) Holds(device types.Device) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queues.Contains(device)
}
