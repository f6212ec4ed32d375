package host

import (
	"net/http"

	"github.com/gorilla/mux"
	"github.com/matrix-org/dendrite/internal/httputil"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

// adminPrefix is admin.Prefix below httputil.DendriteAdminPathPrefix.
const adminPrefix = "/admin/toDevice"

// addAdminRoutes puts the admin API where the host has its own (clientapi/routing/routing.go). The router answers
// other paths with 404 and other methods with 405.
func (d *Dendrite) addAdminRoutes(router *mux.Router) {
	for _, route := range d.module.AdminRoutes() {
		handler := makeAuthAPI(route.Name, *d.userAPI.Load(), admin.Unavailable(), func(req *http.Request, device *userapi.Device) util.JSONResponse {
			if device.AccountType != userapi.AccountTypeAdmin { // as httputil.MakeAdminAPI has it
				return util.JSONResponse{Code: http.StatusForbidden, JSON: spec.Forbidden("This API can only be used by admin users.")}
			}
			variables, err := httputil.URLDecodeMapValues(mux.Vars(req))
			if err != nil {
				return util.JSONResponse{
					Code: http.StatusBadRequest,
					JSON: spec.InvalidParam("A part of the path is not correctly percent-encoded."),
				}
			}
			return route.Handle(req, device.UserID, variables)
		})
		router.Handle(adminPrefix+route.Path, handler).Methods(route.Method, http.MethodOptions)
	}
}
