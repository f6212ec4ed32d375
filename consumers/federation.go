package consumers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/internal/limiter"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// The outcomes that Federation.Observe is told, one for each EDU that needs no further attention.
const (
	EDUApplied           = "applied"             // stored, now or before
	EDUSpoofed           = "spoofed"             // its sender is no user of the server that it came from
	EDUWithoutMessageID  = "no_message_id"       // nothing would tell its repetition from a second message
	EDUMalformed         = "malformed"           // not what the specification describes
	EDUTooLarge          = "too_large"           // over MaxEDUBytes
	EDUTooManyRecipients = "too_many_recipients" // names more devices than one EDU may
	EDURefused           = "refused"             // the database will never take it
	EDUKeyRequestRate    = "key_request_rate"    // its sender asks for keys too often
)

// maxRecipients bounds the devices that one EDU names, and those that are stored together, so that one
// server's transaction does not hold up everybody's commits. An EDU of 64 KiB has room for 9,400 at the
// most, with contents of "{}".
const maxRecipients = 10_000

// Federation stores what other servers send: the m.direct_to_device EDUs of their transactions
// (server-server API, "Send-to-device messaging").
type Federation struct {
	Sender Sender
	// IsLocal reports whether a server name is one of this server's own.
	IsLocal func(serverName string) bool
	// MaxEDUBytes is the largest content of an EDU, as it is received.
	MaxEDUBytes int
	// Remember is for how long an EDU is known again by its message_id. Servers repeat a transaction that
	// was not answered for days.
	Remember time.Duration
	// Timeout is how long Receive waits for a transaction to be stored; zero means until its context ends.
	Timeout time.Duration
	// Origins limits how many EDUs are taken of one server, and KeyRequestRate how many m.room_key_request of one of its
	// users: the device that a content names is the sender's invention. The key requests of a transaction that is not stored
	// do not count. Nil takes any number.
	Origins        *limiter.Limiter[string]
	KeyRequestRate *limiter.Limiter[string]
	// LogLimited limits how often it is logged that a server was told to wait; nil logs it each time.
	LogLimited *limiter.Limiter[string]
	// KeyRequest is told of each m.room_key_request for a local user once it is stored. It must not block.
	// Nil means that nobody is told.
	KeyRequest func(sender, eventType string, content json.RawMessage)
	// Observe is told the outcome of each EDU; nil means that nobody is.
	Observe func(outcome string)
	// Trace is told of each step of a message; nil means that nobody is.
	Trace trace.Recorder
	Log   *logrus.Entry
}

// ErrLimitExceeded is returned for more EDUs than are taken of one server. Nothing was stored: the server has to send
// them again later, for which it must be answered 429.
var ErrLimitExceeded = errors.New("the server sends more EDUs than are taken of it")

// Receive takes the contents of the m.direct_to_device EDUs of one transaction, in their order, from the
// server that was authenticated. It returns nil once none of them needs further attention: each is
// durably stored for every recipient that exists, or was before, or is passed over for good, which is
// observed. After an error the origin has to send the transaction again, for which it must be answered
// 5xx: what was stored already is known by its message_id.
func (f *Federation) Receive(ctx context.Context, origin string, edus []json.RawMessage) error {
	if !f.Origins.Allow(origin, len(edus)) {
		if f.LogLimited.Allow(origin, 1) {
			f.Log.WithFields(logrus.Fields{"origin": origin, "edus": len(edus)}).
				Info("to_device: a server sends more EDUs than limits.origin_edus_per_second allows, it is to send them again later")
		}
		return ErrLimitExceeded
	}
	if f.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.Timeout)
		defer cancel()
	}
	var counted []string
	err := f.receive(ctx, origin, edus, &counted)
	if err != nil {
		for _, sender := range counted { // the same key requests come again
			f.KeyRequestRate.GiveBack(sender, 1)
		}
	}
	return err
}

// receive adds the sender of each key request that counts to counted.
func (f *Federation) receive(ctx context.Context, origin string, edus []json.RawMessage, counted *[]string) error {
	var skipped []skippedEDU
	var batch []writer.Message
	recipients := 0
	for _, raw := range edus {
		message, outcome := f.parse(origin, raw)
		if outcome == "" && isKeyRequest(&message) {
			if f.KeyRequestRate.Allow(message.Sender, 1) {
				*counted = append(*counted, message.Sender)
			} else {
				outcome = EDUKeyRequestRate
			}
		}
		if outcome != "" {
			skipped = append(skipped, skippedEDU{message, outcome})
			continue
		}
		if recipients += len(message.Targets); recipients > maxRecipients {
			if err := f.store(ctx, batch); err != nil {
				return err
			}
			batch, recipients = nil, len(message.Targets)
		}
		batch = append(batch, message)
	}
	if err := f.store(ctx, batch); err != nil {
		return err
	}
	for _, edu := range skipped {
		f.Log.WithFields(logrus.Fields{"origin": origin, "outcome": edu.outcome}).Debug("to_device: passing over an EDU")
		f.observe(edu.outcome)
		f.tellSkipped(edu)
	}
	return nil
}

// store returns nil once the messages are stored, but for those that the database refuses.
func (f *Federation) store(ctx context.Context, batch []writer.Message) error {
	if len(batch) == 0 {
		return nil
	}
	tell(f.Trace, trace.Accepted, "", batch...)
	err := f.Sender.Send(ctx, batch...)
	if err != nil && !retryable(err) && ctx.Err() == nil {
		return f.storeEach(ctx, batch)
	}
	if err != nil {
		tell(f.Trace, trace.Failed, "", batch...)
		return err
	}
	for i := range batch {
		f.applied(&batch[i])
	}
	return nil
}

// storeEach stores one by one what the database refuses together, so that what it refuses is dropped
// alone.
func (f *Federation) storeEach(ctx context.Context, batch []writer.Message) error {
	for i := range batch {
		m := &batch[i]
		err := f.Sender.Send(ctx, *m)
		switch {
		case err == nil:
			f.applied(m)
		case retryable(err) || ctx.Err() != nil:
			tell(f.Trace, trace.Failed, "", batch[i:]...)
			return err
		default:
			f.Log.WithError(err).WithFields(logrus.Fields{"sender": m.Sender, "message_id": m.Transaction.TransactionID}).
				Error("to_device: dropping an EDU that the database refuses")
			f.observe(EDURefused)
			tell(f.Trace, trace.Dropped, trace.DatabaseRefuses, *m)
		}
	}
	return nil
}

func (f *Federation) applied(m *writer.Message) {
	f.observe(EDUApplied)
	if isKeyRequest(m) && f.KeyRequest != nil {
		f.KeyRequest(m.Sender, m.Type, anyContent(m))
	}
}

func isKeyRequest(m *writer.Message) bool {
	return m.Type == types.RoomKeyRequest && len(m.Targets) > 0
}

// anyContent returns a content of a message with targets, the same each time: the contents of a key request are one request
// to several devices.
func anyContent(m *writer.Message) json.RawMessage {
	return slices.MinFunc(m.Targets, func(a, b devices.Target) int {
		return cmp.Or(cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.DeviceID, b.DeviceID))
	}).Content
}

func (f *Federation) observe(outcome string) {
	if f.Observe != nil {
		f.Observe(outcome)
	}
}
