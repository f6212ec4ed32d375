// Package routing answers the client routes of the module.
package routing

import (
	"context"
	"net/http"
	"time"

	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/internal/wire"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
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
	// Remember is how long a transaction ID is recognised.
	Remember time.Duration
	// Timeout is how long a request waits for its message to be stored.
	Timeout time.Duration
	Log     *logrus.Entry
}

// Handle answers a request of an authenticated device; the event type and the transaction ID are
// percent-decoded. It answers 200 only when the message is durably stored for every recipient
// that exists, 4xx only when the request is at fault, in which case nothing is stored, and 5xx
// otherwise: then the same request again is stored once.
func (h *SendToDevice) Handle(req *http.Request, sender types.Device, eventType, transactionID string) util.JSONResponse {
	if res := checkPath("event type", eventType); res != nil {
		return *res
	}
	if res := checkPath("transaction ID", transactionID); res != nil {
		return *res
	}
	if !storage.Storable(sender) {
		return *invalidParam("Your device ID is too long, or has characters that can't be stored. Sign in again with another one.")
	}
	body, res := readBody(req, h.Limits.RequestBytes)
	if res != nil {
		return *res
	}
	named, res := parseBody(body, h.Limits)
	if res != nil {
		return *res
	}
	local, remote := h.byServer(named)
	edus, err := h.pack(sender, eventType, remote)
	if err != nil {
		return *badJSON(quote(err.Error()) + ". Nothing was sent to anyone.")
	}
	ctx, cancel := context.WithTimeout(req.Context(), h.Timeout)
	defer cancel()
	err = h.Sender.Send(ctx, writer.Message{
		Sender:      sender.UserID,
		Type:        eventType,
		Targets:     local,
		EDUs:        edus,
		Transaction: types.TransactionKey{Device: sender, EventType: eventType, TransactionID: transactionID},
		Remember:    h.Remember,
	})
	if err != nil {
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

// byServer passes over what is no user ID.
func (h *SendToDevice) byServer(named []devices.Target) (local, remote []devices.Target) {
	for _, target := range named {
		server, valid := wire.ServerOf(target.UserID)
		switch {
		case !valid || !storage.Storable(target.Device):
		case h.IsLocal(server):
			local = append(local, target)
		case h.Federates:
			remote = append(remote, target)
		}
	}
	return local, remote
}

func (h *SendToDevice) pack(sender types.Device, eventType string, remote []devices.Target) ([]storage.EDU, error) {
	if len(remote) == 0 {
		return nil, nil
	}
	return outbox.Pack(outbox.Message{
		Origin:  outbox.ServerOf(sender.UserID),
		Sender:  sender.UserID,
		Type:    eventType,
		Targets: remote,
	})
}
