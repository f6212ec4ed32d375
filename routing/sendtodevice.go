// Package routing answers the client routes of the module.
package routing

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/internal/bodies"
	"github.com/matrix-org/dendrite/todevicemodule/internal/limiter"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Sender stores a message, as writer.Sender does.
type Sender interface {
	Send(ctx context.Context, messages ...writer.Message) error
}

// SendToDevice answers PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId} (client-server
// API, "Send-to-Device messaging").
type SendToDevice struct {
	Sender Sender
	// IsLocal reports whether a server name is one of this server's own.
	IsLocal func(serverName string) bool
	// Federates says that messages are sent to other servers; otherwise their users are passed over.
	Federates bool
	Limits    Limits
	// Bodies bounds what the bodies of requests take in memory together; nil has no bound.
	Bodies *bodies.Room
	// KeyRequests limits how many m.room_key_request of one device are taken for devices of other users, each
	// device named counting as one, unless the message is not stored; nil takes any number.
	KeyRequests *limiter.Limiter[types.Device]
	// NoneDeleted is asked when a request begins, and returns what is to say whether no device of the user was deleted since,
	// as devices.Directory does; nil means that none ever is.
	NoneDeleted func(userID string) func() bool
	// Remember is how long a transaction ID is recognised.
	Remember time.Duration
	// Timeout is how long a request waits for its message to be stored.
	Timeout time.Duration
	// Trace is told of each step of a message; nil means that nobody is.
	Trace trace.Recorder
	Log   *logrus.Entry
}

// Handle answers a request of an authenticated device; the event type and the transaction ID are
// percent-decoded. It answers 200 only when the message is durably stored for every recipient
// that exists, 4xx only when the request is at fault, in which case nothing is stored, and 5xx
// otherwise: then the same request again is stored once. A request that a deletion of devices of its user has overtaken is
// answered 503 and stores nothing: if its own device is not gone, its repetition does.
func (h *SendToDevice) Handle(req *http.Request, sender types.Device, eventType, transactionID string) util.JSONResponse {
	noneDeleted := h.noneDeleted(sender.UserID) // ahead of the body, which may take its time to arrive
	if res := checkPath("event type", eventType); res != nil {
		return *res
	}
	if res := checkPath("transaction ID", transactionID); res != nil {
		return *res
	}
	if !storage.Storable(sender) {
		return *invalidParam("Your device ID is too long, or has characters that can't be stored. Sign in again with another one.")
	}
	body, res := h.readBody(req)
	if res != nil {
		return *res
	}
	defer body.Release() // what is made of it is kept until the message is stored
	named, res := parseBody(body.Text(), h.Limits)
	if res != nil {
		return *res
	}
	h.identify(named)
	message := writer.Message{
		Sender:      sender.UserID,
		Type:        eventType,
		Transaction: types.TransactionKey{Device: sender, EventType: eventType, TransactionID: transactionID},
		Remember:    h.Remember,
		NoneDeleted: noneDeleted,
	}
	named, giveBack := h.withinKeyRequestRate(&message, named)
	remote := h.byServer(&message, named)
	accepted := h.accept(&message, len(remote))
	if err := h.pack(&message, remote, accepted); err != nil {
		giveBack()
		return *badJSON(quote(err.Error()) + ". Nothing was sent to anyone.")
	}
	accepted.tell()
	ctx, cancel := context.WithTimeout(req.Context(), h.Timeout)
	defer cancel()
	if err := h.Sender.Send(ctx, message); err != nil {
		giveBack()
		accepted.tellFailed()
		if errors.Is(err, writer.ErrTooManyCopies) {
			return *tooLarge("The message is for all devices of users who have too many, or too much data for all of them. Nothing was sent to anyone.")
		}
		log := h.Log.WithError(err).WithFields(logrus.Fields{"user_id": sender.UserID, "device_id": sender.DeviceID})
		if req.Context().Err() != nil {
			log.Debug("to_device: a client went away before its message was stored")
		} else {
			log.Error("to_device: a message was not stored")
		}
		return ErrorResponse(err)
	}
	return util.JSONResponse{Code: http.StatusOK, JSON: struct{}{}}
}

func (h *SendToDevice) noneDeleted(userID string) func() bool {
	if h.NoneDeleted == nil {
		return nil
	}
	return h.NoneDeleted(userID)
}

// byServer makes local users the message's targets and returns those of other servers. It passes over what is no user
// ID.
func (h *SendToDevice) byServer(m *writer.Message, named []devices.Target) (remote []devices.Target) {
	for _, target := range named {
		server, valid := wire.ServerOf(target.UserID)
		switch {
		case !valid || !storage.Storable(target.Device):
			h.drop(m, trace.InvalidUser, target)
		case h.IsLocal(server):
			m.Targets = append(m.Targets, target)
		case h.Federates:
			remote = append(remote, target)
		default:
			h.drop(m, trace.NotFederating, target)
		}
	}
	return remote
}

func (h *SendToDevice) pack(m *writer.Message, remote []devices.Target, accepted *accepted) (err error) {
	if len(remote) == 0 {
		return nil
	}
	message := outbox.Message{Origin: outbox.ServerOf(m.Sender), Sender: m.Sender, Type: m.Type, Targets: remote}
	if accepted != nil {
		message.Packed = func(target devices.Target, edu *storage.EDU) { accepted.add(m, target, edu) }
	}
	m.EDUs, err = outbox.Pack(message)
	return err
}
