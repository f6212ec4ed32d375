package host

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/gorilla/mux"
	"github.com/matrix-org/dendrite/federationapi/producers"
	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/internal"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
)

// transactionsAtOnce bounds the transactions of one server that are under way. A server sends the next
// one when the last was answered (server-server API, "Transactions"). The others are for one that it sends
// again each minute, as Synapse does, while a proxy keeps up the requests that it gave up; a 429 makes
// Synapse leave this server alone for ten minutes. Together they may be as large as one may be alone: the PDUs of a transaction
// may take minutes, in which its body takes room from other servers.
const transactionsAtOnce = 10

// retryAfterMillis is when a server that has too many transactions under way is to try again.
const retryAfterMillis = 5000

// addSendRoute must be called before federationapi.AddPublicRoutes: the router takes the first match. The
// parts are made as there and in federationapi/routing/routing.go.
func (d *Dendrite) addSendRoute(
	m *setup.Monolith,
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	routers httputil.Routers,
	natsInstance *jetstream.NATSInstance,
) {
	js, _ := natsInstance.Prepare(processContext, &cfg.Global.JetStream)
	stream := cfg.Global.JetStream.Prefixed
	producer := &producers.SyncAPIProducer{
		JetStream:              js,
		TopicReceiptEvent:      stream(jetstream.OutputReceiptEvent),
		TopicSendToDeviceEvent: stream(jetstream.OutputSendToDeviceEvent),
		TopicTypingEvent:       stream(jetstream.OutputTypingEvent),
		TopicPresenceEvent:     stream(jetstream.OutputPresenceEvent),
		TopicDeviceListUpdate:  stream(jetstream.InputDeviceListUpdate),
		TopicSigningKeyUpdate:  stream(jetstream.InputSigningKeyUpdate),
		Config:                 &cfg.FederationAPI,
		UserAPI:                m.UserAPI,
	}
	rooms := internal.NewMutexByRoom()
	route := &sendRoute{
		receive: d.module.ReceiveEDUs,
		next: func(req *http.Request, request *fclient.FederationRequest, id gomatrixserverlib.TransactionID) util.JSONResponse {
			return fedrouting.Send(
				req, request, id, &cfg.FederationAPI, m.RoomserverAPI, m.UserAPI, m.KeyRing, m.FedClient, rooms, producer,
			)
		},
		hold:     d.module.HoldBody,
		underWay: newUnderWay(transactionsAtOnce, maxTransactionBytes),
		log:      d.log,
	}
	route.register(routers.Federation, &cfg.Global, m.KeyRing, d.wakeups)
}

// sendRoute answers PUT /_matrix/federation/v1/send/{txnID} (server-server API, "Transactions").
type sendRoute struct {
	// receive stores the contents of a transaction's m.direct_to_device EDUs; see Module.ReceiveEDUs.
	receive func(ctx context.Context, origin string, contents []json.RawMessage) error
	// next is the host's own answer to a transaction.
	next     func(*http.Request, *fclient.FederationRequest, gomatrixserverlib.TransactionID) util.JSONResponse
	hold     holdBody
	underWay *underWay
	log      *logrus.Entry
}

// register has the host authenticate what it authenticates on its own route.
func (s *sendRoute) register(federation *mux.Router, global *config.Global, keys gomatrixserverlib.JSONVerifier, wakeups *fedrouting.FederationWakeups) {
	handler := fedrouting.MakeFedAPI("federation_send", global.ServerName, global.IsLocalServerName, exactVerifier{keys}, wakeups, s.serve)
	federation.Handle("/v1/send/{txnID}", withBoundedBody(s.hold, handler)).Methods(http.MethodPut, http.MethodOptions)
}

// serve stores the to-device EDUs of an authenticated transaction before the host gets the rest, whose
// PDUs may take minutes or fail. Where they can't be stored it leaves the rest alone and answers 5xx: the
// server sends all of it again.
func (s *sendRoute) serve(req *http.Request, request *fclient.FederationRequest, vars map[string]string) util.JSONResponse {
	origin := string(request.Origin())
	bytes := len(request.Content())
	if !s.underWay.begin(origin, bytes) {
		return util.JSONResponse{
			Code: http.StatusTooManyRequests,
			JSON: spec.LimitExceeded("Your server has too many transactions under way. Wait for the answers to those.", retryAfterMillis),
		}
	}
	defer s.underWay.end(origin, bytes)
	toDevice, rest, err := splitTransaction(request)
	if errors.Is(err, errTooManyParts) {
		return tooManyParts()
	}
	if err == nil && len(toDevice) > 0 {
		err = s.receive(req.Context(), origin, toDevice)
	}
	if errors.Is(err, consumers.ErrLimitExceeded) {
		return util.JSONResponse{
			Code: http.StatusTooManyRequests,
			JSON: spec.LimitExceeded("Your server sends too many messages to devices. Send the same transaction again later.", retryAfterMillis),
		}
	}
	if err != nil {
		s.log.WithError(err).WithField("origin", origin).Warn("to_device: a server's messages were not stored, it will send them again")
		return routing.ErrorResponse(err)
	}
	id := gomatrixserverlib.TransactionID(vars["txnID"])
	res := s.next(req, rest, id)
	for res.Code == http.StatusAccepted {
		// The host's answer to all but one of those that waited for a transaction under way. Its own answer
		// may have been another: PDUs that are known already are quickly gone through again.
		res = s.next(req, rest, id)
	}
	return res
}
