// Package consumers takes in the messages that reach the server other than by its client route.
package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

const (
	// maxTypeBytes is the specification's bound of an event type.
	maxTypeBytes = 255
	// entryRemembered is for how long an entry may come again without being stored twice: an acknowledgement can
	// be lost right before a long outage.
	entryRemembered = 365 * 24 * time.Hour
)

// Entry is one message from the host's own stream of send-to-device messages, where the host puts what
// relays hand over, and where it may have left messages before the module was switched on.
type Entry struct {
	// Stream and Sequence name the entry; Timestamp tells apart two streams of one name, of which
	// the second was made after the first was lost.
	Stream    string
	Sequence  uint64
	Timestamp time.Time
	// Unreadable says that the host can't tell what the entry is: it is dropped.
	Unreadable bool

	types.Device
	Sender  string
	Type    string
	Content json.RawMessage
}

// Sender stores messages together, as writer.Sender does.
type Sender interface {
	Send(ctx context.Context, messages ...writer.Message) error
}

// Leftovers stores entries of the host's stream, each once.
type Leftovers struct {
	Sender Sender
	// IsLocal reports whether a server name is one of this server's own.
	IsLocal func(serverName string) bool
	// KeyRequest is told of each message once it is stored, maybe more than once; nil means nobody is.
	// It must not block.
	KeyRequest func(sender, eventType string, content json.RawMessage)
	// Trace is told of each step of a message; nil means that nobody is.
	Trace trace.Recorder
	Log   *logrus.Entry
}

// Receive stores entries in their order, in one commit. It returns nil once they need no further
// attention: each is durably stored, or was before, or can never be stored, which is logged. An error
// means that the host has to offer all of them again.
func (l *Leftovers) Receive(ctx context.Context, entries ...Entry) error {
	var ours []Entry
	var messages, dropped []writer.Message
	for _, e := range entries {
		if !e.Unreadable && !l.isOurs(e) {
			continue
		}
		if err := e.check(); err != nil {
			l.log(e).WithError(err).Error("to_device: dropping a message that can't be stored")
			dropped = append(dropped, l.message(e))
			continue
		}
		ours = append(ours, e)
		messages = append(messages, l.message(e))
		if l.Trace != nil {
			messages[len(messages)-1].Targets[0].MessageID = trace.MessageID(e.Content)
		}
	}
	if len(ours) > 0 {
		tell(l.Trace, trace.Accepted, "", messages...)
		if err := l.store(ctx, ours, messages); err != nil {
			return err
		}
	}
	tell(l.Trace, trace.Dropped, trace.Malformed, dropped...)
	return nil
}

// store returns nil once the messages are stored, but for those that the database refuses.
func (l *Leftovers) store(ctx context.Context, entries []Entry, messages []writer.Message) error {
	err := l.Sender.Send(ctx, messages...)
	switch {
	case err == nil:
		l.stored(entries)
		return nil
	case retryable(err):
		tell(l.Trace, trace.Failed, "", messages...)
		return err
	case len(entries) == 1:
		l.log(entries[0]).WithError(err).Error("to_device: dropping a message that the database refuses")
		tell(l.Trace, trace.Dropped, trace.DatabaseRefuses, messages...)
		return nil
	}
	for i := range entries { // the one that the database refuses must not take the others with it
		if err := l.store(ctx, entries[i:i+1], messages[i:i+1]); err != nil {
			tell(l.Trace, trace.Failed, "", messages[i+1:]...)
			return err
		}
	}
	return nil
}

// isOurs reports whether an entry is for a local user. What is for another server, the host's federation
// sender takes from the stream: a doorbell too.
func (l *Leftovers) isOurs(e Entry) bool {
	_, server, _ := strings.Cut(e.UserID, ":")
	return l.IsLocal(server)
}

func (l *Leftovers) message(e Entry) writer.Message {
	m := writer.Message{
		Sender:      e.Sender,
		Type:        e.Type,
		Targets:     []devices.Target{{Device: e.Device, Content: e.Content}},
		Transaction: e.key(),
		Remember:    entryRemembered,
	}
	if server, valid := wire.ServerOf(e.Sender); valid && !l.IsLocal(server) {
		m.Traced.Origin = server
	}
	return m
}

func (l *Leftovers) stored(entries []Entry) {
	if l.KeyRequest == nil {
		return
	}
	for _, e := range entries {
		l.KeyRequest(e.Sender, e.Type, e.Content)
	}
}

func (l *Leftovers) log(e Entry) *logrus.Entry {
	return l.Log.WithFields(logrus.Fields{"stream": e.Stream, "sequence": e.Sequence, "user_id": e.UserID, "device_id": e.DeviceID})
}

// retryable reports whether an error says nothing of the message itself.
func retryable(err error) bool {
	return errors.Is(err, writer.ErrUnavailable) || errors.Is(err, writer.ErrStopped) || errors.Is(err, storage.ErrTransient)
}

// key can't be the key of a client's transaction, since a stream's name is no user ID, nor that of
// another server's message, since it has no event type.
func (e *Entry) key() types.TransactionKey {
	return types.TransactionKey{
		Device:        types.Device{UserID: e.Stream},
		TransactionID: fmt.Sprintf("%d@%d", e.Sequence, e.Timestamp.UnixNano()),
	}
}

func (e *Entry) check() error {
	if e.Unreadable {
		return errors.New("it can't be read")
	}
	for what, value := range map[string]string{"user ID": e.UserID, "device ID": e.DeviceID, "sender": e.Sender, "event type": e.Type} {
		if len(value) > maxTypeBytes || !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
			return fmt.Errorf("the %s is over %d bytes, not valid UTF-8 or has a NUL character", what, maxTypeBytes)
		}
	}
	var content map[string]json.RawMessage
	if err := json.Unmarshal(e.Content, &content); err != nil || content == nil || !utf8.Valid(e.Content) {
		return errors.New("the content is not a JSON object")
	}
	if depth := types.Depth(e.Content); depth > types.MaxContentDepth {
		return fmt.Errorf("the content is nested %d levels deep, more than %d", depth, types.MaxContentDepth)
	}
	return nil
}
