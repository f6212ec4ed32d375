package host

import (
	"context"
	"errors"
	"testing"

	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// staleAPI answers PerformMarkAsStaleIfNeeded.
type staleAPI struct {
	userapi.UserInternalAPI
	answer func(*userapi.PerformMarkAsStaleRequest) error
}

func (a *staleAPI) PerformMarkAsStaleIfNeeded(_ context.Context, req *userapi.PerformMarkAsStaleRequest, _ *struct{}) error {
	return a.answer(req)
}

func withUserAPI(api userapi.UserInternalAPI) *Dendrite {
	d := &Dendrite{}
	d.WrapUserAPI(api)
	return d
}

func TestMarkDeviceListStale(t *testing.T) {
	want := userapi.PerformMarkAsStaleRequest{UserID: "@carol:there:8448", Domain: "there:8448", DeviceID: "D"}
	failure := errors.New("away")
	d := withUserAPI(&staleAPI{answer: func(req *userapi.PerformMarkAsStaleRequest) error {
		if *req != want {
			t.Errorf("asked was %+v, want %+v", *req, want)
		}
		return failure
	}})
	if err := d.MarkDeviceListStale(t.Context(), "@carol:there:8448", "D"); !errors.Is(err, failure) {
		t.Errorf("the error is %v", err)
	}
	if err := d.MarkDeviceListStale(t.Context(), "carol", "D"); err == nil || errors.Is(err, failure) {
		t.Errorf("the error for what is no user ID is %v", err)
	}
}

func TestMarkDeviceListStaleEndsWithItsContext(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	d := withUserAPI(&staleAPI{answer: func(*userapi.PerformMarkAsStaleRequest) error {
		close(asked)
		<-release
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.MarkDeviceListStale(ctx, "@carol:there", "D") }()
	<-asked
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}
