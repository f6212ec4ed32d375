package smallhost

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var (
	errUserInUse = errors.New("the user exists")
	errForbidden = errors.New("no such user, or another password")
)

// localpart is that of a user ID.
var localpart = regexp.MustCompile(`^[a-z0-9._=/+-]{1,200}$`)

// signIn is the body of /register and /login.
type signIn struct {
	Type       string `json:"type"`
	Username   string `json:"username"`
	User       string `json:"user"`
	Identifier struct {
		User string `json:"user"`
	} `json:"identifier"`
	Password string `json:"password"`
	DeviceID string `json:"device_id"`
}

// userID takes a localpart or a whole user ID.
func (h *host) userID(name string) string {
	if strings.HasPrefix(name, "@") {
		return name
	}
	return "@" + name + ":" + string(h.name)
}

// register asks for no stages of authentication. A guest is a user without a name or a password that anybody knows.
func (h *host) register(_ http.ResponseWriter, req *http.Request) util.JSONResponse {
	var body signIn
	if refusal := read(req, &body); refusal != nil {
		return *refusal
	}
	guest := req.URL.Query().Get("kind") == "guest"
	if guest {
		body = signIn{Password: rand.Text()}
	}
	body.Username = cmp.Or(body.Username, strings.ToLower(rand.Text()))
	if !localpart.MatchString(body.Username) {
		return refuse(http.StatusBadRequest, spec.ErrorInvalidUsername, "A name may have a-z, 0-9 and the characters ._=-/+ in it.")
	}
	userID := h.userID(body.Username)
	err := h.accounts.change(func(s *state) error {
		if s.Users[userID] != nil {
			return errUserInUse
		}
		s.Users[userID] = &user{Password: body.Password, Guest: guest, Devices: make(map[string]string)}
		return nil
	})
	if err != nil {
		return h.failed(err)
	}
	return h.createDevice(req.Context(), userID, body)
}

func (h *host) login(_ http.ResponseWriter, req *http.Request) util.JSONResponse {
	var body signIn
	if refusal := read(req, &body); refusal != nil {
		return *refusal
	}
	if body.Type != "m.login.password" {
		return refuse(http.StatusBadRequest, spec.ErrorUnknown, "Sign in with the type m.login.password.")
	}
	return h.createDevice(req.Context(), h.userID(cmp.Or(body.Identifier.User, body.User)), body)
}

// createDevice makes a device, or gives one that exists a new access token, inside of Module.CreateDevice.
func (h *host) createDevice(ctx context.Context, userID string, body signIn) util.JSONResponse {
	deviceID, token := cmp.Or(body.DeviceID, rand.Text()[:10]), rand.Text()
	if u := h.accounts.now().Users[userID]; !u.takes(body.Password) {
		return h.failed(errForbidden)
	}
	err := h.module.CreateDevice(ctx, userID, deviceID, func() error {
		return h.accounts.change(func(s *state) error {
			u := s.Users[userID]
			if !u.takes(body.Password) {
				return errForbidden
			}
			u.Devices[deviceID] = token
			return nil
		})
	})
	if err != nil {
		return h.failed(err)
	}
	return ok(map[string]any{"user_id": userID, "device_id": deviceID, "access_token": token})
}

func (u *user) takes(password string) bool {
	return u != nil && !u.Deactivated && u.Password == password
}

func (h *host) failed(err error) util.JSONResponse {
	switch {
	case errors.Is(err, errUserInUse):
		return refuse(http.StatusBadRequest, spec.ErrorUserInUse, "There is a user of that name. Choose another one.")
	case errors.Is(err, errForbidden):
		return refuse(http.StatusForbidden, spec.ErrorForbidden, "The user or the password is wrong.")
	default:
		h.log.WithError(err).Error("changing accounts failed")
		return routing.ErrorResponse(err)
	}
}

func (h *host) listDevices(_ *http.Request, device types.Device) util.JSONResponse {
	list := []map[string]string{}
	for _, deviceID := range h.accounts.devices(device.UserID) {
		list = append(list, map[string]string{"device_id": deviceID})
	}
	return ok(map[string]any{"devices": list})
}

func (h *host) logout(req *http.Request, device types.Device) util.JSONResponse {
	return h.deleteDevices(req.Context(), device.UserID, []string{device.DeviceID}, nil)
}

func (h *host) logoutAll(req *http.Request, device types.Device) util.JSONResponse {
	return h.deleteDevices(req.Context(), device.UserID, h.accounts.devices(device.UserID), nil)
}

func (h *host) deleteDevice(req *http.Request, device types.Device) util.JSONResponse {
	return h.deleteDevices(req.Context(), device.UserID, []string{req.PathValue("deviceID")}, nil)
}

func (h *host) deleteSomeDevices(req *http.Request, device types.Device) util.JSONResponse {
	var body struct {
		Devices []string `json:"devices"`
	}
	if refusal := read(req, &body); refusal != nil {
		return *refusal
	}
	return h.deleteDevices(req.Context(), device.UserID, body.Devices, nil)
}

func (h *host) deactivate(req *http.Request, device types.Device) util.JSONResponse {
	res := h.deleteDevices(req.Context(), device.UserID, nil, func(u *user) {
		u.Deactivated = true
		clear(u.Devices)
	})
	if res.Is2xx() {
		res.JSON = map[string]any{"id_server_unbind_result": "no-support"}
	}
	return res
}

func (h *host) changePassword(req *http.Request, device types.Device) util.JSONResponse {
	body := struct {
		NewPassword   string `json:"new_password"`
		LogoutDevices bool   `json:"logout_devices"`
	}{LogoutDevices: true}
	if refusal := read(req, &body); refusal != nil {
		return *refusal
	}
	change := func(u *user) { u.Password = body.NewPassword }
	if body.LogoutDevices {
		return h.deleteDevices(req.Context(), device.UserID, nil, func(u *user) {
			change(u)
			maps.DeleteFunc(u.Devices, func(deviceID, _ string) bool { return deviceID != device.DeviceID })
		})
	}
	err := h.accounts.change(func(s *state) error {
		change(s.Users[device.UserID])
		return nil
	})
	if err != nil {
		return h.failed(err)
	}
	return ok(struct{}{})
}

// deleteDevices deletes devices of a user, and what else goes with that, inside of Module.DeleteDevices. Every way in which a device ends comes here.
func (h *host) deleteDevices(ctx context.Context, userID string, deviceIDs []string, also func(*user)) util.JSONResponse {
	before := h.accounts.devices(userID)
	err := h.module.DeleteDevices(ctx, userID, func() error {
		return h.accounts.change(func(s *state) error {
			u := s.Users[userID]
			for _, deviceID := range deviceIDs {
				delete(u.Devices, deviceID)
			}
			if also != nil {
				also(u)
			}
			return nil
		})
	})
	after := h.accounts.devices(userID)
	for _, deviceID := range before {
		if !slices.Contains(after, deviceID) {
			h.waiting.wake(types.Device{UserID: userID, DeviceID: deviceID})
		}
	}
	if err != nil {
		return h.failed(err) // the devices may be gone all the same; what was kept for them is not, yet
	}
	return ok(struct{}{})
}
