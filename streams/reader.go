// Package streams reads a device's queue for /sync: the provider behind the to_device part of a
// sync token.
package streams

import (
	"context"
	"math"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Acknowledgements is what the reader needs to know of, and says to, the deletion of messages.
type Acknowledgements interface {
	Acknowledge(device types.Device, through types.Position)
	Acknowledged(device types.Device) types.Position
}

// IgnoredSenders returns the users whose messages a receiver does not want. It is asked only when
// messages wait, and at most once a read.
type IgnoredSenders func(ctx context.Context) ([]string, error)

// Reader reads queues. Its methods are safe for concurrent use.
type Reader struct {
	Store            storage.Store
	Acknowledgements Acknowledgements
	// Published returns the last visible position.
	Published func() types.Position
	// Limit is the most messages that one read returns.
	Limit int
	// Bytes is how large their contents may be together: a message that goes beyond it is left to the next read, unless it is the first.
	// 0 means any size.
	Bytes int
	// Trace is told of the messages that are handed over; nil means that nobody is.
	Trace trace.Recorder
}

// Read returns a device's first messages with after < position <= through, in order of their
// positions and at most Limit and Bytes, and the position of the sync token that acknowledges exactly
// them: the last one's if there may be more, through otherwise.
//
// Messages of ignored senders are passed over as if they were not there, but for the receiver's
// own: devices of one user must always be able to reach each other. Nil ignores nobody. An error says nothing of
// the queue: it must not pass for an empty one.
func (r *Reader) Read(ctx context.Context, device types.Device, after, through types.Position, ignored IgnoredSenders) ([]types.Message, types.Position, error) {
	through = min(through, r.Published())
	start := max(after, r.Acknowledgements.Acknowledged(device), 0)
	if start >= through || !storage.Storable(device) {
		return nil, max(after, through), nil
	}
	messages, err := r.Store.Messages(ctx, device, start, through, r.Limit, nil)
	if err != nil {
		return nil, after, err
	}
	if len(messages) > 0 && ignored != nil {
		if messages, err = r.withoutIgnored(ctx, device, start, through, messages, ignored); err != nil {
			return nil, after, err
		}
	}
	fitting := r.fitting(messages)
	if fitting < len(messages) || len(messages) == r.Limit {
		return messages[:fitting], messages[fitting-1].Position, nil
	}
	return messages, through, nil
}

// fitting returns how many of the messages are within Bytes.
func (r *Reader) fitting(messages []types.Message) int {
	bytes := 0
	for i := range messages {
		if bytes += len(messages[i].Content); i > 0 && r.Bytes > 0 && bytes > r.Bytes {
			return i
		}
	}
	return len(messages)
}

// HandedOver says that messages which were read are in a response. What is read for one that fails is not handed over.
func (r *Reader) HandedOver(device types.Device, messages []types.Message) {
	if r.Trace == nil || len(messages) == 0 {
		return
	}
	records := make([]trace.Record, 0, len(messages))
	for i := range messages {
		m := &messages[i]
		records = append(records, trace.Record{
			Step: trace.HandedOver, Recipient: device, Position: m.Position,
			Sender: m.Sender, Type: m.Type, MessageID: trace.MessageID(m.Content),
		})
	}
	r.Trace.Record(records...)
}

// withoutIgnored reads again, this time past the ignored senders, if any of the messages is from
// one of them.
func (r *Reader) withoutIgnored(ctx context.Context, device types.Device, start, through types.Position, messages []types.Message, ignored IgnoredSenders) ([]types.Message, error) {
	senders, err := ignored(ctx)
	if err != nil {
		return nil, err
	}
	senders = slices.DeleteFunc(senders, func(userID string) bool { return userID == device.UserID })
	fromIgnored := func(m types.Message) bool { return slices.Contains(senders, m.Sender) }
	if !slices.ContainsFunc(messages, fromIgnored) {
		return messages, nil
	}
	return r.Store.Messages(ctx, device, start, through, r.Limit, senders)
}

// Acknowledge takes the position of a since token as the acknowledgement of everything up to and
// including it. A position that was never handed out, because it is ahead of every visible
// message, acknowledges nothing.
func (r *Reader) Acknowledge(device types.Device, since types.Position) {
	if since > 0 && since <= r.Published() && storage.Storable(device) {
		r.Acknowledgements.Acknowledge(device, since)
	}
}

// Since returns the position to read after for the position in a client's since token: the same
// position, or one before every message if the token is ahead of everything this server ever
// handed out, so that such a token hides nothing.
func (r *Reader) Since(position types.Position) types.Position {
	if position < 0 || position > r.Published() {
		return BeforeAll
	}
	return position
}

// BeforeAll stands before every message. It is far below zero because hosts add up the positions of
// a token, and take a token that comes to zero for none at all.
const BeforeAll types.Position = math.MinInt64 / 2
