package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"

	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// fakeUserAPI says that it was called, and fails with err.
type fakeUserAPI struct {
	userapi.UserInternalAPI
	called func(method string)
	err    error
}

func (a *fakeUserAPI) PerformDeviceCreation(_ context.Context, req *userapi.PerformDeviceCreationRequest, _ *userapi.PerformDeviceCreationResponse) error {
	if req.DeviceID == nil {
		a.called("creation")
	} else {
		a.called("creation as " + strconv.Quote(*req.DeviceID))
	}
	return a.err
}

func (a *fakeUserAPI) PerformDeviceDeletion(context.Context, *userapi.PerformDeviceDeletionRequest, *userapi.PerformDeviceDeletionResponse) error {
	a.called("deletion")
	return a.err
}

func (a *fakeUserAPI) PerformAccountDeactivation(context.Context, *userapi.PerformAccountDeactivationRequest, *userapi.PerformAccountDeactivationResponse) error {
	a.called("deactivation")
	return a.err
}

func (a *fakeUserAPI) PerformPasswordUpdate(context.Context, *userapi.PerformPasswordUpdateRequest, *userapi.PerformPasswordUpdateResponse) error {
	a.called("password")
	return a.err
}

// fakeDeviceChanges says what it was asked for, around the change itself, and fails with err after it.
type fakeDeviceChanges struct {
	called func(what string)
	err    error
}

func (f *fakeDeviceChanges) CreateDevice(_ context.Context, userID, deviceID string, create func() error) error {
	f.called("create " + userID + " " + deviceID)
	return errors.Join(create(), f.err)
}

func (f *fakeDeviceChanges) DeleteDevices(_ context.Context, userID string, remove func() error) error {
	f.called("delete " + userID)
	return errors.Join(remove(), f.err)
}

func TestDeviceChangesAreReported(t *testing.T) {
	ctx := t.Context()
	phone, empty := "PHONE", ""
	tests := []struct {
		name, reported, method string
		call                   func(api userapi.UserInternalAPI) error
	}{
		{"creation", "create @bob:x ", "creation", func(api userapi.UserInternalAPI) error {
			return api.PerformDeviceCreation(ctx, &userapi.PerformDeviceCreationRequest{Localpart: "bob"}, &userapi.PerformDeviceCreationResponse{})
		}},
		{"creation under an ID", "create @bob:x PHONE", `creation as "PHONE"`, func(api userapi.UserInternalAPI) error {
			return api.PerformDeviceCreation(ctx, &userapi.PerformDeviceCreationRequest{Localpart: "bob", DeviceID: &phone}, &userapi.PerformDeviceCreationResponse{})
		}},
		{"creation under an empty ID", "create @bob:x ", "creation", func(api userapi.UserInternalAPI) error {
			req := &userapi.PerformDeviceCreationRequest{Localpart: "bob", DeviceID: &empty}
			err := api.PerformDeviceCreation(ctx, req, &userapi.PerformDeviceCreationResponse{})
			if req.DeviceID != &empty {
				t.Error("the caller's request was changed")
			}
			return err
		}},
		{"creation on another of the server's names", "create @bob:y ", "creation", func(api userapi.UserInternalAPI) error {
			return api.PerformDeviceCreation(ctx, &userapi.PerformDeviceCreationRequest{Localpart: "bob", ServerName: "y"}, &userapi.PerformDeviceCreationResponse{})
		}},
		{"deletion", "delete @bob:y", "deletion", func(api userapi.UserInternalAPI) error {
			return api.PerformDeviceDeletion(ctx, &userapi.PerformDeviceDeletionRequest{UserID: "@bob:y"}, &userapi.PerformDeviceDeletionResponse{})
		}},
		{"deactivation", "delete @bob:x", "deactivation", func(api userapi.UserInternalAPI) error {
			return api.PerformAccountDeactivation(ctx, &userapi.PerformAccountDeactivationRequest{Localpart: "bob"}, &userapi.PerformAccountDeactivationResponse{})
		}},
		{"deactivation on another of the server's names", "delete @bob:y", "deactivation", func(api userapi.UserInternalAPI) error {
			return api.PerformAccountDeactivation(ctx, &userapi.PerformAccountDeactivationRequest{Localpart: "bob", ServerName: "y"}, &userapi.PerformAccountDeactivationResponse{})
		}},
		{"new password that signs out", "delete @bob:x", "password", func(api userapi.UserInternalAPI) error {
			req := &userapi.PerformPasswordUpdateRequest{Localpart: "bob", LogoutDevices: true}
			return api.PerformPasswordUpdate(ctx, req, &userapi.PerformPasswordUpdateResponse{})
		}},
		{"new password", "", "password", func(api userapi.UserInternalAPI) error {
			req := &userapi.PerformPasswordUpdateRequest{Localpart: "bob"}
			return api.PerformPasswordUpdate(ctx, req, &userapi.PerformPasswordUpdateResponse{})
		}},
	}
	for _, test := range tests {
		for _, failure := range [][2]error{{}, {errors.New("away"), nil}, {nil, errors.New("not cleaned up")}} {
			t.Run(test.name, func(t *testing.T) {
				var order []string
				note := func(what string) { order = append(order, what) }
				keys, err := newKeyCounts()
				if err != nil {
					t.Fatal(err)
				}
				api := &watchedUserAPI{
					UserInternalAPI: &fakeUserAPI{called: note, err: failure[0]},
					keys:            keys,
					devices:         &fakeDeviceChanges{called: note, err: failure[1]},
					serverName:      "x",
				}
				err = test.call(api)
				want := []string{test.reported, test.method}
				if test.reported == "" {
					want, failure[1] = want[1:], nil
				}
				if wanted := errors.Join(failure[:]...); fmt.Sprint(err) != fmt.Sprint(wanted) {
					t.Errorf("the error is %v, want %v", err, wanted)
				}
				if !slices.Equal(order, want) {
					t.Errorf("the calls are %v, want %v", order, want)
				}
			})
		}
	}
}

// Devices that the host does not list keep their transaction records.
func TestVirtualDevices(t *testing.T) {
	d := &Dendrite{}
	for deviceID, want := range map[string]bool{"AS_Device": true, "": true, "PHONE": false} {
		if got := d.VirtualDevice(deviceID); got != want {
			t.Errorf("the device %q is virtual: %v, want %v", deviceID, got, want)
		}
	}
}
