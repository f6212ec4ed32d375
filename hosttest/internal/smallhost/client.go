package smallhost

import (
	"net/http"
	"strings"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// clientRoutes are the endpoints of the client-server API.
func (h *host) clientRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", handler(unknownRoute))
	mux.Handle("GET /_matrix/client/versions", handler(func(http.ResponseWriter, *http.Request) util.JSONResponse {
		return ok(map[string]any{"versions": []string{"v1.7"}})
	}))
	for _, version := range []string{"r0", "v3"} {
		prefix := "/_matrix/client/" + version
		mux.Handle("POST "+prefix+"/register", handler(h.register))
		mux.Handle("POST "+prefix+"/login", handler(h.login))
		mux.Handle("POST "+prefix+"/logout", h.authenticated(h.logout))
		mux.Handle("POST "+prefix+"/logout/all", h.authenticated(h.logoutAll))
		mux.Handle("GET "+prefix+"/account/whoami", h.authenticated(whoami))
		mux.Handle("POST "+prefix+"/account/password", h.authenticated(h.changePassword))
		mux.Handle("POST "+prefix+"/account/deactivate", h.authenticated(h.deactivate))
		mux.Handle("GET "+prefix+"/devices", h.authenticated(h.listDevices))
		mux.Handle("DELETE "+prefix+"/devices/{deviceID}", h.authenticated(h.deleteDevice))
		mux.Handle("POST "+prefix+"/delete_devices", h.authenticated(h.deleteSomeDevices))
		mux.Handle("GET "+prefix+"/sync", h.authenticated(h.sync))
	}
	for _, version := range []string{"r0", "v3", "unstable"} {
		mux.Handle("PUT /_matrix/client/"+version+"/sendToDevice/{eventType}/{txnID}", h.authenticated(h.sendToDevice))
	}
	return mux
}

// sendToDevice leaves everything to the module, the body too.
func (h *host) sendToDevice(req *http.Request, device types.Device) util.JSONResponse {
	return h.module.SendToDevice(req, device, req.PathValue("eventType"), req.PathValue("txnID"))
}

func whoami(_ *http.Request, device types.Device) util.JSONResponse {
	return ok(map[string]any{"user_id": device.UserID, "device_id": device.DeviceID})
}

// authenticated passes on the requests of devices that exist.
func (h *host) authenticated(f func(*http.Request, types.Device) util.JSONResponse) http.Handler {
	return handler(func(_ http.ResponseWriter, req *http.Request) util.JSONResponse {
		device, refusal := h.deviceOf(req)
		if refusal != nil {
			return *refusal
		}
		return f(req, device)
	})
}

// deviceOf returns the device that a request comes from.
func (h *host) deviceOf(req *http.Request) (types.Device, *util.JSONResponse) {
	token, isBearer := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !isBearer {
		token = req.URL.Query().Get("access_token")
	}
	if token == "" {
		res := refuse(http.StatusUnauthorized, spec.ErrorMissingToken, "Send an access token along.")
		return types.Device{}, &res
	}
	device, known := h.accounts.authenticate(token)
	if !known {
		res := refuse(http.StatusUnauthorized, spec.ErrorUnknownToken, "The access token is not known. Sign in again.")
		return types.Device{}, &res
	}
	return device, nil
}
