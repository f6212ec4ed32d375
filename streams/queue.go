package streams

import (
	"bytes"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// messageBytes stands for a message's fields, and for its share of what a slice has in reserve.
const messageBytes = 160

// queue is what a Cache holds of one device's messages: every one with a position above from.
type queue struct {
	from      types.Position
	messages  []types.Message
	bytes     int64 // of the messages
	deletions int   // how often messages were deleted
}

func size(messages ...types.Message) (n int64) {
	for i := range messages {
		m := &messages[i]
		n += messageBytes + int64(len(m.Sender)+len(m.Type)+len(m.Content))
	}
	return n
}

// upTo returns how many of the messages have positions up to and including through.
func upTo(messages []types.Message, through types.Position) int {
	n, _ := slices.BinarySearchFunc(messages, through, func(m types.Message, through types.Position) int {
		if m.Position <= through {
			return -1
		}
		return 1
	})
	return n
}

// read returns what storage.Store's Messages does, as far as it lies above from. The caller may keep the slice.
func (q *queue) read(after, through types.Position, limit int, except []string) []types.Message {
	if after >= through {
		return nil
	}
	found := q.messages[upTo(q.messages, after):upTo(q.messages, through)]
	if len(except) > 0 {
		found = slices.DeleteFunc(slices.Clone(found), func(m types.Message) bool { return slices.Contains(except, m.Sender) })
	}
	return append([]types.Message(nil), found[:min(len(found), limit)]...)
}

func (q *queue) add(messages ...types.Message) {
	q.messages = append(q.messages, messages...)
	q.bytes += size(messages...)
}

// precede puts messages in front, which are all there are with positions above after and up to from.
func (q *queue) precede(after types.Position, messages []types.Message) {
	if len(messages) > 0 {
		q.messages = slices.Concat(messages, q.messages)
		q.bytes += size(messages...)
	}
	q.from = after
}

// deleted says that there are no messages any more with positions up to and including through, and never will be.
func (q *queue) deleted(through types.Position) {
	q.deletions++
	q.drop(upTo(q.messages, through))
	if q.from <= through {
		q.from = 0
	}
}

// forgetOldest keeps the newest messages that have no more bytes together than given.
func (q *queue) forgetOldest(keep int64) {
	n, left := 0, q.bytes
	for ; left > keep; n++ {
		left -= size(q.messages[n])
	}
	q.from = q.messages[n-1].Position
	q.drop(n)
}

func (q *queue) drop(n int) {
	q.bytes -= size(q.messages[:n]...)
	if left := q.messages[n:]; 4*len(left) < cap(q.messages) {
		q.messages = append([]types.Message(nil), left...) // a device that had many at a time leaves no room behind
	} else {
		q.messages = slices.Delete(q.messages, 0, n)
	}
}

// cloner copies contents: they may be parts of a request that would stay in memory whole. Copies of one content stay one.
type cloner struct{ original, clone []byte }

func (c *cloner) message(d *storage.Delivery, i int) types.Message {
	content := d.Copies[i].Content
	if len(content) != len(c.original) || len(content) > 0 && &content[0] != &c.original[0] {
		c.original, c.clone = content, bytes.Clone(content)
	}
	return types.Message{Position: d.Position + types.Position(i), Sender: d.Sender, Type: d.Type, Content: c.clone}
}
