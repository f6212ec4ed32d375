package host

import (
	"context"
	"fmt"
	"maps"
	"slices"

	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// WrapUserAPI returns the user API that the host is to use from then on, so that queues begin and end with their
// devices. Everything that is handed a user API must be handed this one.
func (d *Dendrite) WrapUserAPI(api userapi.UserInternalAPI) userapi.UserInternalAPI {
	d.userAPI.Store(&api)
	if d.module == nil {
		return api
	}
	return &watchedUserAPI{
		UserInternalAPI: api,
		devices:         d.module,
		keys:            d.keys,
		serverName:      d.config.Global.ServerName,
	}
}

// deviceChanges is the part of Module that the decorator reports to.
type deviceChanges interface {
	CreateDevice(ctx context.Context, userID, deviceID string, create func() error) error
	DeleteDevices(ctx context.Context, userID string, remove func() error) error
}

// watchedUserAPI reports the calls that create and delete devices, and those that change their one-time keys: userapi/internal/user_api.go. Deactivation and a
// new password delete devices inside the host's implementation, past this decorator, so they are reported by themselves.
type watchedUserAPI struct {
	userapi.UserInternalAPI
	devices    deviceChanges
	keys       *keyCounts
	serverName spec.ServerName
}

// PerformDeviceCreation has the host choose an ID where a client asks for an empty one: the host would take that for an ID, and
// then never list the device (userapi/storage/postgres/devices_table.go, selectDevicesByLocalpartSQL).
func (w *watchedUserAPI) PerformDeviceCreation(ctx context.Context, req *userapi.PerformDeviceCreationRequest, res *userapi.PerformDeviceCreationResponse) error {
	deviceID := ""
	if req.DeviceID != nil {
		deviceID = *req.DeviceID
	}
	if deviceID == "" {
		unnamed := *req
		unnamed.DeviceID = nil
		req = &unnamed
	}
	userID := w.userID(req.Localpart, req.ServerName)
	return w.devices.CreateDevice(ctx, userID, deviceID, func() error {
		return w.keys.change(func() error { return w.UserInternalAPI.PerformDeviceCreation(ctx, req, res) }, userID)
	})
}

func (w *watchedUserAPI) PerformDeviceDeletion(ctx context.Context, req *userapi.PerformDeviceDeletionRequest, res *userapi.PerformDeviceDeletionResponse) error {
	return w.deleteDevices(ctx, req.UserID, func() error {
		return w.UserInternalAPI.PerformDeviceDeletion(ctx, req, res)
	})
}

func (w *watchedUserAPI) PerformAccountDeactivation(ctx context.Context, req *userapi.PerformAccountDeactivationRequest, res *userapi.PerformAccountDeactivationResponse) error {
	return w.deleteDevices(ctx, w.userID(req.Localpart, req.ServerName), func() error {
		return w.UserInternalAPI.PerformAccountDeactivation(ctx, req, res)
	})
}

func (w *watchedUserAPI) PerformPasswordUpdate(ctx context.Context, req *userapi.PerformPasswordUpdateRequest, res *userapi.PerformPasswordUpdateResponse) error {
	update := func() error { return w.UserInternalAPI.PerformPasswordUpdate(ctx, req, res) }
	if !req.LogoutDevices {
		return update()
	}
	return w.deleteDevices(ctx, w.userID(req.Localpart, req.ServerName), update)
}

func (w *watchedUserAPI) deleteDevices(ctx context.Context, userID string, remove func() error) error {
	return w.devices.DeleteDevices(ctx, userID, func() error { return w.keys.change(remove, userID) })
}

// PerformUploadKeys adds one-time keys.
func (w *watchedUserAPI) PerformUploadKeys(ctx context.Context, req *userapi.PerformUploadKeysRequest, res *userapi.PerformUploadKeysResponse) error {
	userIDs := []string{req.UserID}
	for i := range req.OneTimeKeys {
		userIDs = append(userIDs, req.OneTimeKeys[i].UserID)
	}
	return w.keys.change(func() error { return w.UserInternalAPI.PerformUploadKeys(ctx, req, res) }, userIDs...)
}

// PerformClaimKeys takes one-time keys away.
func (w *watchedUserAPI) PerformClaimKeys(ctx context.Context, req *userapi.PerformClaimKeysRequest, res *userapi.PerformClaimKeysResponse) {
	_ = w.keys.change(func() error {
		w.UserInternalAPI.PerformClaimKeys(ctx, req, res)
		return nil
	}, slices.Collect(maps.Keys(req.OneTimeKeys))...)
}

// userID follows the host, which takes no server name for its first one.
func (w *watchedUserAPI) userID(localpart string, serverName spec.ServerName) string {
	if serverName == "" {
		serverName = w.serverName
	}
	return fmt.Sprintf("@%s:%s", localpart, serverName)
}
