package host

import (
	"context"
	"net/http"

	"github.com/matrix-org/dendrite/internal/httputil"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/util"
)

// tokens returns a device of nobody instead of an error, for which the host has a 500 without an errcode.
type tokens struct{ userapi.QueryAcccessTokenAPI }

func (t tokens) QueryAccessToken(ctx context.Context, req *userapi.QueryAccessTokenRequest, res *userapi.QueryAccessTokenResponse) error {
	if err := t.QueryAcccessTokenAPI.QueryAccessToken(ctx, req, res); err != nil {
		util.GetLogger(ctx).WithError(err).Error("to_device: looking up an access token failed")
		*res = userapi.QueryAccessTokenResponse{Device: &userapi.Device{}}
	}
	return nil
}

// makeAuthAPI is httputil.MakeAuthAPI, but that a request whose access token can't be looked up is answered with unavailable.
func makeAuthAPI(name string, api userapi.QueryAcccessTokenAPI, unavailable util.JSONResponse, f func(*http.Request, *userapi.Device) util.JSONResponse, checks ...httputil.AuthAPIOption) http.Handler {
	return httputil.MakeAuthAPI(name, tokens{api}, func(req *http.Request, device *userapi.Device) util.JSONResponse {
		if device.UserID == "" {
			return unavailable
		}
		return f(req, device)
	}, checks...)
}
