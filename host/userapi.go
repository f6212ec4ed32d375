package host

import (
	"context"
	"fmt"

	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// WrapUserAPI returns the user API that the host is to use from then on, so that the module learns of
// devices that are created and deleted. Everything that is handed a user API must be handed this one.
func (d *Dendrite) WrapUserAPI(api userapi.UserInternalAPI) userapi.UserInternalAPI {
	d.userAPI = api
	if d.module == nil {
		return api
	}
	return &watchedUserAPI{
		UserInternalAPI: api,
		changed:         d.module.DevicesChanged,
		serverName:      d.config.Global.ServerName,
	}
}

// watchedUserAPI reports the calls that create and delete devices. Deactivation deletes devices
// inside the host's implementation, past this decorator, so it is reported by itself.
type watchedUserAPI struct {
	userapi.UserInternalAPI
	changed    func(userID string)
	serverName spec.ServerName
}

func (w *watchedUserAPI) PerformDeviceCreation(ctx context.Context, req *userapi.PerformDeviceCreationRequest, res *userapi.PerformDeviceCreationResponse) error {
	userID := w.userID(req.Localpart, req.ServerName)
	w.changed(userID)
	defer w.changed(userID)
	return w.UserInternalAPI.PerformDeviceCreation(ctx, req, res)
}

func (w *watchedUserAPI) PerformDeviceDeletion(ctx context.Context, req *userapi.PerformDeviceDeletionRequest, res *userapi.PerformDeviceDeletionResponse) error {
	w.changed(req.UserID)
	defer w.changed(req.UserID)
	return w.UserInternalAPI.PerformDeviceDeletion(ctx, req, res)
}

func (w *watchedUserAPI) PerformAccountDeactivation(ctx context.Context, req *userapi.PerformAccountDeactivationRequest, res *userapi.PerformAccountDeactivationResponse) error {
	userID := w.userID(req.Localpart, req.ServerName)
	w.changed(userID)
	defer w.changed(userID)
	return w.UserInternalAPI.PerformAccountDeactivation(ctx, req, res)
}

// userID follows the host, which takes no server name for its first one.
func (w *watchedUserAPI) userID(localpart string, serverName spec.ServerName) string {
	if serverName == "" {
		serverName = w.serverName
	}
	return fmt.Sprintf("@%s:%s", localpart, serverName)
}
