package todevicemodule_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// oneDevice is a host all of whose users have one device, PHONE.
type oneDevice struct {
	noFederation
	store storage.Store
}

func (oneDevice) UserDevices(context.Context, string) ([]string, error) {
	return []string{"PHONE"}, nil
}

func (oneDevice) DeviceOwners(context.Context, []string) (map[string]string, error) {
	return nil, errors.New("not asked for so few users")
}

func (oneDevice) VirtualDevice(string) bool                                    { return false }
func (oneDevice) IsLocalServer(serverName string) bool                         { return serverName == "test" }
func (oneDevice) WakeDevices(types.Position, []writer.Wakeup)                  {}
func (h oneDevice) Store(todevicemodule.DatabaseConfig) (storage.Store, error) { return h.store, nil }

func (oneDevice) ForeignQueue(todevicemodule.DatabaseConfig) (storage.ForeignQueue, error) {
	return nil, nil //nolint:nilnil // it has none
}

// started returns a module on the store that runs until the test ends.
func started(t *testing.T, store storage.Store) *todevicemodule.Module {
	t.Helper()
	return startedWith(t, oneDevice{store: store})
}

// startedWith returns a module of the host that runs until the test ends.
func startedWith(t *testing.T, host todevicemodule.Host) *todevicemodule.Module {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	module, err := todevicemodule.New(todevicemodule.DefaultConfig(), host, nil, logrus.NewEntry(log))
	if err == nil {
		err = module.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := module.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return module
}

// A purge deletes what can be read when it begins: a message of which the commit has not returned stays.
func TestPurgeLeavesWhatComesLater(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		store := &faulty.Store{Store: open(t)}
		module := started(t, store)
		bob := types.Device{UserID: "@bob:test", DeviceID: "PHONE"}
		send := func(n int) {
			body := fmt.Sprintf(`{"messages":{"@bob:test":{"PHONE":{"n":%d}}}}`, n)
			req := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(body)).WithContext(t.Context())
			if res := module.SendToDevice(req, types.Device{UserID: "@alice:test", DeviceID: "PHONE"}, "m.test", fmt.Sprint(n)); res.Code != http.StatusOK {
				t.Fatalf("%d %v", res.Code, res.JSON)
			}
		}
		send(1)
		var purged util.JSONResponse
		store.OnCommit(func(ctx context.Context, batch storage.Batch, carryOut faulty.Commit) error {
			err := carryOut(ctx, batch)
			purged = call(t, module, "todevice_purge_device", map[string]string{"userID": bob.UserID, "deviceID": bob.DeviceID})
			return err
		})
		send(2)
		store.OnCommit(nil)
		if deleted, ok := purged.JSON.(*admin.Deleted); !ok || deleted.Deleted != 1 {
			t.Errorf("the purge is answered with %d %+v", purged.Code, purged.JSON)
		}
		left, _, err := module.ReadForSync(t.Context(), bob, 0, module.LatestPosition(), nobodyIgnored)
		if err != nil || len(left) != 1 || string(left[0].Content) != `{"n":2}` {
			t.Errorf("left: %+v, %v", left, err)
		}
	})
}

func call(t *testing.T, module *todevicemodule.Module, name string, variables map[string]string) util.JSONResponse {
	t.Helper()
	for _, route := range module.AdminRoutes() {
		if route.Name == name {
			req := httptest.NewRequest(route.Method, "/", nil).WithContext(t.Context())
			return route.Handle(req, "@admin:test", variables)
		}
	}
	t.Fatalf("there is no call %s", name)
	return util.JSONResponse{}
}
