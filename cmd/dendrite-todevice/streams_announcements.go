//go:build announcements

package main

import (
	"database/sql"
	"net/http"

	"github.com/gorilla/mux"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/process"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/examples/announcements"
	"github.com/matrix-org/dendrite/todevicemodule/host"
	"github.com/matrix-org/dendrite/todevicemodule/positions"
)

// addStreams puts the announcements of the example into /sync, and an administrator's call to post one beside the host's own calls.
func addStreams(toDevice *host.Dendrite, processCtx *process.ProcessContext, m *setup.Monolith, cm *sqlutil.Connections, routers httputil.Routers) error {
	db, writer, err := cm.Connection(&m.Config.SyncAPI.Database)
	if err != nil {
		return err
	}
	store, err := announcements.Open(processCtx.Context(), db, func(f func(*sql.Tx) error) error { return writer.Do(db, nil, f) })
	if err != nil {
		return err
	}
	registry, err := positions.NewRegistry(store.Stream())
	if err != nil {
		return err
	}
	toDevice.UseStreams(registry)
	post := httputil.MakeAdminAPI("announcements", m.UserAPI, func(req *http.Request, _ *userapi.Device) util.JSONResponse {
		vars, err := httputil.URLDecodeMapValues(mux.Vars(req))
		if err != nil {
			return util.JSONResponse{Code: http.StatusBadRequest, JSON: spec.InvalidParam("The ID is not correctly percent-encoded.")}
		}
		return store.ServePut(req, vars["id"], registry.WakeAll)
	})
	routers.DendriteAdmin.Handle("/admin/announcements/{id}", post).Methods(http.MethodPut, http.MethodOptions)
	return nil
}
