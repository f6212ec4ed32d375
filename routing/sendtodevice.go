// Package routing answers the client routes of the module.
package routing

import (
	"context"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Sender stores a message, as writer.Sender does.
type Sender interface {
	Send(ctx context.Context, m writer.Message) error
}

// SendToDevice answers PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId} (client-server
// API, "Send-to-Device messaging").
type SendToDevice struct {
	Sender Sender
	// IsLocal reports whether a server name is one of this server's own.
	IsLocal func(serverName string) bool
	Limits  Limits
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
	targets, res := h.localTargets(named)
	if res != nil {
		return *res
	}
	ctx, cancel := context.WithTimeout(req.Context(), h.Timeout)
	defer cancel()
	err := h.Sender.Send(ctx, writer.Message{
		Sender:      sender.UserID,
		Type:        eventType,
		Targets:     targets,
		Transaction: types.TransactionKey{Device: sender, EventType: eventType, TransactionID: transactionID},
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

// localTargets passes over what is no user ID, and refuses users of other servers.
func (h *SendToDevice) localTargets(named []devices.Target) ([]devices.Target, *util.JSONResponse) {
	var local []devices.Target
	for _, target := range named {
		server, valid := serverOf(target.UserID)
		switch {
		case !valid:
		case h.IsLocal(server):
			local = append(local, target)
		default:
			return nil, matrixError(http.StatusNotImplemented, spec.ErrorUnrecognized,
				"This server does not send to-device messages to users of other servers yet: "+quote(target.UserID)+". Nothing was sent to anyone.")
		}
	}
	return local, nil
}
