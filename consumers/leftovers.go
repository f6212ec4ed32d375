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
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// maxTypeBytes is the specification's bound of an event type.
const maxTypeBytes = 255

// Entry is one message from the host's own stream of send-to-device messages, where the host puts what
// federation brings in, and where it may have left messages before the module was switched on.
type Entry struct {
	// Stream and Sequence name the entry; Timestamp tells apart two streams of one name, of which
	// the second was made after the first was lost.
	Stream    string
	Sequence  uint64
	Timestamp time.Time

	types.Device
	Sender  string
	Type    string
	Content json.RawMessage
}

// Sender stores a message, as writer.Sender does.
type Sender interface {
	Send(ctx context.Context, m writer.Message) error
}

// Leftovers stores entries of the host's stream, each once.
type Leftovers struct {
	Sender Sender
	// IsLocal reports whether a server name is one of this server's own.
	IsLocal func(serverName string) bool
	Log     *logrus.Entry
}

// Receive returns nil once the entry needs no further attention: it is durably stored, or was
// before, or can never be stored, which is logged. An error means that the host has to offer the
// entry again.
func (l *Leftovers) Receive(ctx context.Context, e Entry) error {
	if _, server, _ := strings.Cut(e.UserID, ":"); !l.IsLocal(server) {
		return nil // of the host's federation sender
	}
	log := l.Log.WithFields(logrus.Fields{"stream": e.Stream, "sequence": e.Sequence, "user_id": e.UserID, "device_id": e.DeviceID})
	if err := e.check(); err != nil {
		log.WithError(err).Error("to_device: dropping a message that can't be stored")
		return nil
	}
	err := l.Sender.Send(ctx, writer.Message{
		Sender:      e.Sender,
		Type:        e.Type,
		Targets:     []devices.Target{{Device: e.Device, Content: e.Content}},
		Transaction: e.key(),
	})
	if err == nil || retryable(err) {
		return err
	}
	log.WithError(err).Error("to_device: dropping a message that the database refuses")
	return nil
}

// retryable reports whether an error says nothing of the message itself.
func retryable(err error) bool {
	return errors.Is(err, writer.ErrUnavailable) || errors.Is(err, writer.ErrStopped) || errors.Is(err, storage.ErrTransient)
}

// key can't be the key of a client's transaction, since a stream's name is no user ID.
func (e *Entry) key() types.TransactionKey {
	return types.TransactionKey{
		Device:        types.Device{UserID: e.Stream},
		TransactionID: fmt.Sprintf("%d@%d", e.Sequence, e.Timestamp.UnixNano()),
	}
}

func (e *Entry) check() error {
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
