package smallhost

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// maxEDUs is how many EDUs a transaction may have (server-server API, "Transactions").
	maxEDUs = 100
	// maxTransactionBytes has room for those, and maxNesting for what they are nested; see todevicemodule.OtherServers.
	maxTransactionBytes = 25 << 20
	maxNesting          = maxTransactionBytes * types.MaxContentDepth
	retryAfterMillis    = 5000
)

// federationRoutes are the endpoints of the server-server API.
func (h *host) federationRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", handler(unknownRoute))
	mux.Handle("GET /_matrix/federation/v1/version", handler(func(http.ResponseWriter, *http.Request) util.JSONResponse {
		return ok(map[string]any{"server": map[string]string{"name": "smallhost", "version": "1"}})
	}))
	mux.Handle("GET /_matrix/key/v2/server", handler(h.publishKey))
	mux.Handle("GET /_matrix/key/v2/server/{keyID}", handler(h.publishKey))
	mux.Handle("PUT /_matrix/federation/v1/send/{txnID}", handler(h.receive))
	return h.noticed(mux)
}

// noticed tells the module of every request of another server. Its origin is not authenticated, and need not be.
func (h *host) noticed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if scheme, origin, _, _, _ := fclient.ParseAuthorization(req.Header.Get("Authorization")); scheme == "X-Matrix" {
			h.module.RemoteSeen(string(origin))
		}
		next.ServeHTTP(w, req)
	})
}

// receive answers a transaction. The module reads its body before anything else does, and has stored what is for devices before
// the answer says so.
func (h *host) receive(_ http.ResponseWriter, req *http.Request) util.JSONResponse {
	release, refusal := h.module.HoldBody(req, maxTransactionBytes, maxNesting)
	if refusal != nil {
		return *refusal
	}
	defer release()
	request, refused := fclient.VerifyHTTPRequest(req, time.Now(), h.name, h.isOwnName, h.keys)
	if request == nil {
		return refused
	}
	var transaction struct {
		EDUs []gomatrixserverlib.EDU `json:"edus"`
	}
	if err := json.Unmarshal(request.Content(), &transaction); err != nil || len(transaction.EDUs) > maxEDUs {
		return refuse(http.StatusBadRequest, spec.ErrorBadJSON, "The body is no transaction, or has more than 100 EDUs.")
	}
	var toDevice []json.RawMessage
	for _, edu := range transaction.EDUs {
		if edu.Type == spec.MDirectToDevice {
			toDevice = append(toDevice, json.RawMessage(edu.Content))
		}
	}
	if len(toDevice) > 0 {
		err := h.module.ReceiveEDUs(req.Context(), string(request.Origin()), toDevice)
		if errors.Is(err, consumers.ErrLimitExceeded) {
			return util.JSONResponse{Code: http.StatusTooManyRequests, JSON: spec.LimitExceeded("Send the same transaction again later.", retryAfterMillis)}
		}
		if err != nil {
			return routing.ErrorResponse(err) // the server sends all of it again
		}
	}
	return ok(map[string]any{"pdus": struct{}{}})
}

func (h *host) isOwnName(name spec.ServerName) bool { return h.IsLocalServer(string(name)) }
