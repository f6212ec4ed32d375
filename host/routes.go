package host

import (
	"context"
	"net/http"
	"net/url"

	"github.com/gorilla/mux"
	"github.com/matrix-org/dendrite/clientapi/auth"
	"github.com/matrix-org/dendrite/internal/httputil"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/positions"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// addSendToDeviceRoute must be called before the host's own routes are added: the router takes the
// first match. Versions and guests are as in the host.
func (d *Dendrite) addSendToDeviceRoute(client *mux.Router) {
	handler := makeAuthAPI("send_to_device", d.rememberedTokens(), routing.ErrorResponse(storage.ErrTransient), func(req *http.Request, device *userapi.Device) util.JSONResponse {
		vars, err := httputil.URLDecodeMapValues(mux.Vars(req))
		if err != nil {
			return util.JSONResponse{
				Code: http.StatusBadRequest,
				JSON: spec.InvalidParam("The event type or the transaction ID is not correctly percent-encoded."),
			}
		}
		sender := types.Device{UserID: device.UserID, DeviceID: device.ID}
		return d.module.SendToDevice(req, sender, vars["eventType"], vars["txnID"])
	}, httputil.WithAllowGuests())
	client.Handle("/{apiversion:(?:r0|v3|unstable)}/sendToDevice/{eventType}/{txnID}", withInterruptibleBody(handler)).
		Methods(http.MethodPut, http.MethodOptions)
}

// newSyncRoute returns the route of /sync, which answers nothing before handleSync. The router tries its routes one by one, with a
// regular expression each: before the host's hundreds of routes it costs a /sync a fifth less of the processor.
func newSyncRoute(client *mux.Router) *mux.Route {
	return client.NewRoute().Path("/{apiversion:(?:r0|v3)}/sync").Methods(http.MethodGet, http.MethodOptions)
}

// handleSync has the pool answer on the route.
func (d *Dendrite) handleSync(route *mux.Route, pool syncPool) {
	route.Handler(httputil.MakeAuthAPI("sync", d.rememberedTokens(), func(req *http.Request, device *userapi.Device) util.JSONResponse {
		return d.serveSync(req, device, pool)
	}, httputil.WithAllowGuests()))
}

// syncPool is the host's sync.RequestPool.
type syncPool interface {
	OnIncomingSyncRequest(req *http.Request, device *userapi.Device) util.JSONResponse
}

// serveSync has the host's RequestPool answer, beside further streams where there are any.
func (d *Dendrite) serveSync(req *http.Request, device *userapi.Device, pool syncPool) util.JSONResponse {
	call := syncCall{req: req, query: req.URL.Query(), device: device, pool: pool}
	if d.streams.Empty() && !positions.HasParts(call.query.Get("since")) {
		answer := d.ask(req.Context(), &call)
		defer answer.failed.cancel()
		return d.deliver(&call, answer, false)
	}
	return d.serveStreams(&call)
}

// syncCall is a /sync request.
type syncCall struct {
	req    *http.Request
	device *userapi.Device
	pool   syncPool
	// query is what the host is to see, and changed that it is not the request's own.
	query   url.Values
	changed bool
}

func (c *syncCall) set(key, value string) {
	c.query.Set(key, value)
	c.changed = true
}

// asked returns the request as the host is to see it.
func (c *syncCall) asked(ctx context.Context) *http.Request {
	req := c.req.WithContext(ctx)
	if c.changed {
		u := *req.URL
		u.RawQuery = c.query.Encode()
		req.URL = &u
	}
	return req
}

// syncAnswer is what the pool answered, before anybody knows whether it can be delivered. failed is to be cancelled after that.
type syncAnswer struct {
	res    util.JSONResponse
	failed *syncFailure
}

// ask has the pool answer, but that a to_device position of the since token that is ahead of everything this server ever handed out is
// replaced.
func (d *Dendrite) ask(ctx context.Context, call *syncCall) syncAnswer {
	if since, changed := sinceWithin(call.query.Get("since"), d.module.SinceForSync); changed {
		call.set("since", since)
	}
	ctx, failed := withSyncFailure(ctx)
	return syncAnswer{call.pool.OnIncomingSyncRequest(call.asked(ctx), call.device), failed}
}

// deliver returns the pool's answer, but for a request whose queue could not be read, or whose device was deleted meanwhile: what
// was read for it, or for it alone, may have been sent to the next device of that ID.
func (d *Dendrite) deliver(call *syncCall, answer syncAnswer, private bool) util.JSONResponse {
	if err := answer.failed.failure(); err != nil {
		return routing.ErrorResponse(err)
	}
	if messages := answer.failed.messages(); len(messages) > 0 || private {
		if _, refusal := auth.VerifyUserFromRequest(call.req, d.rememberedTokens()); refusal != nil {
			return *refusal
		}
		d.module.HandedOver(types.Device{UserID: call.device.UserID, DeviceID: call.device.ID}, messages)
	}
	if response, ok := answer.res.JSON.(*synctypes.Response); ok {
		if since := call.query.Get("since"); since == "" {
			d.addKeyCounts(call.req.Context(), call.device, response)
		} else {
			neverBack(response, since)
		}
	}
	return answer.res
}

// neverBack keeps the to_device position of a response from going back behind that of the since token, which may be newer than what the
// host's notifier knows: a commit can be seen a moment before its devices are woken. Where the host has nothing to say it puts
// what the notifier knows in the place of since (syncapi/sync/requestpool.go). Nothing lies between: since has acknowledged it.
func neverBack(response *synctypes.Response, since string) {
	token, err := synctypes.NewStreamTokenFromString(since)
	if err == nil {
		response.NextBatch.SendToDevicePosition = max(response.NextBatch.SendToDevicePosition, token.SendToDevicePosition)
	}
}

// addKeyCounts adds what the host knows of the device's one-time keys to the response of a /sync without since. The host
// leaves it out there alone, and clients take that for no keys at all (client-server API, "Sync
// extensions for end-to-end encryption").
func (d *Dendrite) addKeyCounts(ctx context.Context, device *userapi.Device, response *synctypes.Response) {
	var res userapi.QueryOneTimeKeysResponse
	err := (*d.userAPI.Load()).QueryOneTimeKeys(ctx, &userapi.QueryOneTimeKeysRequest{UserID: device.UserID, DeviceID: device.ID}, &res)
	if err == nil && res.Error != nil {
		err = res.Error
	}
	if err != nil {
		d.log.WithError(err).WithField("user_id", device.UserID).Warn("to_device: counting one-time keys failed")
		return
	}
	tellKeyCounts(response, &res)
}

// sinceWithin passes the to_device position of a since token through clamp, and reports whether
// that changed it. A malformed token is left for the host to refuse.
func sinceWithin(since string, clamp func(types.Position) types.Position) (string, bool) {
	token, err := synctypes.NewStreamTokenFromString(since)
	if err != nil {
		return since, false
	}
	position := synctypes.StreamPosition(clamp(types.Position(token.SendToDevicePosition)))
	if position == token.SendToDevicePosition {
		return since, false
	}
	empty := token.IsEmpty()
	token.SendToDevicePosition = position
	if token.IsEmpty() && !empty {
		// The other positions of a forged token can make up for it, and the host would take it for none.
		token.SendToDevicePosition--
	}
	return token.String(), true
}
