package host

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// fakeStore has one queue, whatever the device. Its last position is testPublished.
type fakeStore struct {
	storage.Store
	messages []types.Message
	err      error // of Messages

	destinations []storage.Destination

	mu           sync.Mutex
	acknowledged []storage.Acknowledgement
	outgoing     []storage.EDU // for one destination
}

type heldLock struct{}

func (heldLock) Check(context.Context) error { return nil }
func (heldLock) Release() error              { return nil }

func (s *fakeStore) Migrate(context.Context) error              { return nil }
func (s *fakeStore) Lock(context.Context) (storage.Lock, error) { return heldLock{}, nil }
func (s *fakeStore) Claim(context.Context, string, types.Position) (types.Position, error) {
	return testPublished, nil
}

func (s *fakeStore) Messages(_ context.Context, _ types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error) {
	var found []types.Message
	for _, m := range s.messages {
		if m.Position > after && m.Position <= through && len(found) < limit && !slices.Contains(except, m.Sender) {
			found = append(found, m)
		}
	}
	return found, s.err
}

func (s *fakeStore) Acknowledge(_ context.Context, a []storage.Acknowledgement, _ int) ([]storage.Acknowledged, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acknowledged = append(s.acknowledged, a...)
	return nil, nil
}

func (s *fakeStore) Imported(context.Context) (types.Position, error)     { return 0, nil }
func (s *fakeStore) Devices(context.Context, string) ([]string, error)    { return nil, nil }
func (s *fakeStore) Users(context.Context, string, int) ([]string, error) { return nil, nil }

func (s *fakeStore) ForgetTransactions(context.Context, time.Time, int) (int, error) { return 0, nil }

func (s *fakeStore) Destinations(context.Context) ([]storage.Destination, error) {
	return s.destinations, nil
}

func (s *fakeStore) Waiting(_ context.Context, _ string, after, _ types.Position, _, _ int) ([]storage.EDU, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var waiting []storage.EDU
	for _, edu := range s.outgoing {
		if edu.Position > after {
			waiting = append(waiting, edu)
		}
	}
	return waiting, nil
}

func (s *fakeStore) Sent(_ context.Context, _ string, through types.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outgoing = slices.DeleteFunc(s.outgoing, func(edu storage.EDU) bool { return edu.Position <= through })
	return nil
}

// storeHost is a host for a module on a fakeStore.
type storeHost struct {
	todevicemodule.Host
	store storage.Store
}

func (storeHost) Federates() bool                                { return true }
func (storeHost) Backoff(string) (until time.Time, givenUp bool) { return time.Time{}, true }
func (storeHost) Reach(context.Context, string) error            { return errors.New("nobody is there") }

func (h storeHost) Store(todevicemodule.DatabaseConfig) (storage.Store, error) { return h.store, nil }

func (storeHost) ForeignQueue(todevicemodule.DatabaseConfig) (storage.ForeignQueue, error) {
	return nil, nil
}

func quietLog() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// newTestHost returns a host whose module has started.
func newTestHost(t *testing.T, store *fakeStore) *Dendrite {
	t.Helper()
	section := todevicemodule.DefaultConfig()
	section.Enabled = true
	module, err := todevicemodule.New(section, storeHost{store: store}, nil, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	if err = module.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &Dendrite{config: &config.Dendrite{}, log: quietLog(), module: module}
	if d.tokens, err = newTokenCache(module.WatchDevices); err != nil {
		t.Fatal(err)
	}
	if d.keys, err = newKeyCounts(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	return d
}

func TestDisabledModuleLeavesTheHostAlone(t *testing.T) {
	d, err := Start(process.NewProcessContext(), &config.Dendrite{}, todevicemodule.DefaultConfig(), nil, nil)
	if err != nil || d.module != nil {
		t.Fatalf("the module is %v, the error %v", d.module, err)
	}
	api := &fakeUserAPI{}
	if got := d.WrapUserAPI(api); got != api {
		t.Errorf("the user API became %T", got)
	}
	client := &fakeClient{}
	if got := d.WrapFederationClient(client); got != client {
		t.Errorf("the federation client became %T", got)
	}
	d.Stop()
}

func TestMonolithNeedsTheWatchedUserAPI(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	api := &fakeUserAPI{}
	d.WrapUserAPI(api)
	err := d.AddAllPublicRoutes(&setup.Monolith{UserAPI: api}, nil, nil, httputil.Routers{}, nil, nil, nil, false)
	if err == nil || !strings.Contains(err.Error(), "WrapUserAPI") {
		t.Errorf("the error is %v", err)
	}
}

func TestMonolithNeedsTheFederationAPI(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	watched := d.WrapUserAPI(&fakeUserAPI{})
	err := d.AddAllPublicRoutes(&setup.Monolith{UserAPI: watched}, nil, nil, httputil.Routers{}, nil, nil, nil, false)
	if err == nil || !strings.Contains(err.Error(), "UseFederationAPI") {
		t.Errorf("the error is %v", err)
	}
}

func TestDatabaseOptions(t *testing.T) {
	global := config.DatabaseOptions{ConnectionString: "postgres://global", MaxOpenConnections: 10}
	syncAPI := config.DatabaseOptions{ConnectionString: "file:syncapi.db", MaxOpenConnections: 20}
	section := todevicemodule.DatabaseConfig{ConnectionString: "postgres://own", MaxOpenConns: 30, MaxIdleConns: 4, ConnMaxLifetime: 50}
	own := config.DatabaseOptions{
		ConnectionString: "postgres://own", MaxOpenConnections: 30, MaxIdleConnections: 4, ConnMaxLifetimeSeconds: 50,
	}
	withoutConnection := section
	withoutConnection.ConnectionString = ""
	tests := []struct {
		name            string
		global, syncAPI config.DatabaseOptions
		section         todevicemodule.DatabaseConfig
		want            config.DatabaseOptions
	}{
		{"the section's own", global, syncAPI, section, own},
		{"the sync API's", global, syncAPI, todevicemodule.DatabaseConfig{}, syncAPI},
		{"the sync API's with its own settings", config.DatabaseOptions{}, syncAPI, withoutConnection, syncAPI},
		{"the global one", global, config.DatabaseOptions{MaxOpenConnections: 99}, withoutConnection, global},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := &Dendrite{config: &config.Dendrite{}}
			d.config.Global.DatabaseOptions, d.config.SyncAPI.Database = test.global, test.syncAPI
			if got := d.databaseOptions(test.section); got != test.want {
				t.Errorf("the options are %+v, want %+v", got, test.want)
			}
		})
	}
}
