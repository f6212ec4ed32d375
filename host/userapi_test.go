package host

import (
	"context"
	"errors"
	"slices"
	"testing"

	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// fakeUserAPI says that it was called, and fails with err.
type fakeUserAPI struct {
	userapi.UserInternalAPI
	called func(method string)
	err    error
}

func (a *fakeUserAPI) PerformDeviceCreation(context.Context, *userapi.PerformDeviceCreationRequest, *userapi.PerformDeviceCreationResponse) error {
	a.called("creation")
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

func TestDevicesChangedBeforeAndAfter(t *testing.T) {
	ctx := t.Context()
	tests := []struct {
		name, userID, method string
		call                 func(api userapi.UserInternalAPI) error
	}{
		{"creation", "@bob:x", "creation", func(api userapi.UserInternalAPI) error {
			return api.PerformDeviceCreation(ctx, &userapi.PerformDeviceCreationRequest{Localpart: "bob"}, &userapi.PerformDeviceCreationResponse{})
		}},
		{"creation on another of the server's names", "@bob:y", "creation", func(api userapi.UserInternalAPI) error {
			return api.PerformDeviceCreation(ctx, &userapi.PerformDeviceCreationRequest{Localpart: "bob", ServerName: "y"}, &userapi.PerformDeviceCreationResponse{})
		}},
		{"deletion", "@bob:y", "deletion", func(api userapi.UserInternalAPI) error {
			return api.PerformDeviceDeletion(ctx, &userapi.PerformDeviceDeletionRequest{UserID: "@bob:y"}, &userapi.PerformDeviceDeletionResponse{})
		}},
		{"deactivation", "@bob:x", "deactivation", func(api userapi.UserInternalAPI) error {
			return api.PerformAccountDeactivation(ctx, &userapi.PerformAccountDeactivationRequest{Localpart: "bob"}, &userapi.PerformAccountDeactivationResponse{})
		}},
		{"deactivation on another of the server's names", "@bob:y", "deactivation", func(api userapi.UserInternalAPI) error {
			return api.PerformAccountDeactivation(ctx, &userapi.PerformAccountDeactivationRequest{Localpart: "bob", ServerName: "y"}, &userapi.PerformAccountDeactivationResponse{})
		}},
	}
	for _, test := range tests {
		for _, hostsError := range []error{nil, errors.New("away")} {
			t.Run(test.name, func(t *testing.T) {
				var order []string
				note := func(what string) { order = append(order, what) }
				api := &watchedUserAPI{
					UserInternalAPI: &fakeUserAPI{called: note, err: hostsError},
					changed:         note,
					serverName:      "x",
				}
				if err := test.call(api); !errors.Is(err, hostsError) {
					t.Errorf("the error is %v, want the host's: %v", err, hostsError)
				}
				if want := []string{test.userID, test.method, test.userID}; !slices.Equal(order, want) {
					t.Errorf("the calls are %v, want %v", order, want)
				}
			})
		}
	}
}
