package host

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/appservice"
	"github.com/matrix-org/dendrite/clientapi"
	"github.com/matrix-org/dendrite/federationapi"
	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/internal/transactions"
	"github.com/matrix-org/dendrite/roomserver"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/base"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/matrix-org/dendrite/userapi"
	userapitypes "github.com/matrix-org/dendrite/userapi/api"
	"github.com/nats-io/nats.go"
	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// monolith is Dendrite's components with the module in this process, as cmd/dendrite-todevice assembles them, without a listener.
type monolith struct {
	*testing.T
	*Dendrite
	setup.Monolith
	caches  *caching.Caches
	routers httputil.Routers
	js      nats.JetStreamContext
	sync    *syncAPI
}

func onBothMonoliths(t *testing.T, test func(m *monolith)) {
	t.Run("postgres", func(t *testing.T) {
		test(newMonolith(t, func(cfg *config.Dendrite) {
			cfg.Global.DatabaseOptions = config.DatabaseOptions{
				ConnectionString: config.DataSource(pgtest.NewDatabase(t)), MaxOpenConnections: 40, MaxIdleConnections: 10,
			}
		}))
	})
	t.Run("sqlite", func(t *testing.T) {
		test(newMonolith(t, func(cfg *config.Dendrite) {
			separateDatabases(cfg, t.TempDir())
		}))
	})
}

// separateDatabases gives each component a file of its own.
func separateDatabases(cfg *config.Dendrite, dir string) {
	for component, options := range map[string]*config.DatabaseOptions{
		"federationapi": &cfg.FederationAPI.Database, "keyserver": &cfg.KeyServer.Database, "mscs": &cfg.MSCs.Database,
		"roomserver": &cfg.RoomServer.Database, "syncapi": &cfg.SyncAPI.Database, "relayapi": &cfg.RelayAPI.Database,
		"userapi": &cfg.UserAPI.AccountDatabase, "mediaapi": &cfg.MediaAPI.Database,
	} {
		*options = config.DatabaseOptions{ConnectionString: config.DataSource("file:" + filepath.Join(dir, component+".db"))}
	}
}

func newMonolith(t *testing.T, databases func(*config.Dendrite)) *monolith {
	t.Helper()
	logrus.SetOutput(io.Discard)
	t.Cleanup(func() { logrus.SetOutput(os.Stderr) })
	cfg := &config.Dendrite{}
	cfg.Defaults(config.DefaultOpts{Generate: true, SingleDatabase: true})
	cfg.Global.ServerName = "test"
	cfg.Global.DisableFederation = true
	cfg.Global.JetStream.InMemory, cfg.Global.JetStream.StoragePath = true, config.Path(t.TempDir())
	cfg.Global.Presence.EnableInbound, cfg.Global.Presence.EnableOutbound = true, true
	cfg.ClientAPI.RateLimiting.Enabled = false
	cfg.SyncAPI.Fulltext.Enabled = false
	cfg.UserAPI.BCryptCost = 4
	cfg.MSCs.MSCs = []string{"msc2753"} // peeks
	databases(cfg)

	processCtx := process.NewProcessContext()
	cm := sqlutil.NewConnectionManager(processCtx, cfg.Global.DatabaseOptions)
	section := todevicemodule.DefaultConfig()
	section.Enabled = true
	d, err := Start(processCtx, cfg, section, cm, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &monolith{
		T: t, Dendrite: d, routers: httputil.NewRouters(),
		caches: caching.NewRistrettoCache(cfg.Global.Cache.EstimatedMaxSize, cfg.Global.Cache.MaxAge, caching.DisableMetrics),
	}
	t.Cleanup(func() {
		d.Stop()
		processCtx.ShutdownDendrite()
		processCtx.WaitForComponentsToFinish()
	})

	natsInstance := &jetstream.NATSInstance{}
	m.Monolith = d.components(processCtx, cm, natsInstance, m.caches)

	m.js, _ = natsInstance.Prepare(processCtx, &cfg.Global.JetStream)
	d.jetStream.Store(&m.js)
	d.addSendToDeviceRoute(m.routers.Client)
	syncRoute := newSyncRoute(m.routers.Client)
	clientapi.AddPublicRoutes(
		processCtx, m.routers, cfg, natsInstance, m.FedClient, m.RoomserverAPI, m.AppserviceAPI, transactions.New(), m.FederationAPI, m.UserAPI,
		m.UserAPI, nil, caching.DisableMetrics,
	)
	if m.sync, err = d.newSyncAPI(&m.Monolith, processCtx, cfg, cm, m.caches); err != nil {
		t.Fatal(err)
	}
	if err = d.startSyncAPI(&m.Monolith, processCtx, cfg, m.routers, syncRoute, natsInstance, m.caches, m.sync, caching.DisableMetrics); err != nil {
		t.Fatal(err)
	}
	return m
}

// components makes Dendrite's components as cmd/dendrite-todevice does, with the module in them.
func (d *Dendrite) components(
	processCtx *process.ProcessContext, cm *sqlutil.Connections, natsInstance *jetstream.NATSInstance, caches *caching.Caches,
) setup.Monolith {
	cfg, fedClient := d.config, base.CreateFederationClient(d.config, nil)
	rsAPI := roomserver.NewInternalAPI(processCtx, cfg, cm, natsInstance, caches, caching.DisableMetrics)
	awaited, ready := AwaitRoomserver(rsAPI)
	fsAPI := federationapi.NewInternalAPI(processCtx, cfg, cm, natsInstance, d.WrapFederationClient(fedClient), awaited, caches, nil, false)
	d.UseFederationAPI(fsAPI, &fedrouting.FederationWakeups{FsAPI: fsAPI})
	rsAPI.SetFederationAPI(fsAPI, fsAPI.KeyRing())
	ready()
	userAPI := d.WrapUserAPI(userapi.NewInternalAPI(
		processCtx, cfg, cm, natsInstance, rsAPI, fedClient, caching.DisableMetrics, fsAPI.IsBlacklistedOrBackingOff,
	))
	asAPI := appservice.NewInternalAPI(processCtx, cfg, natsInstance, userAPI, rsAPI)
	rsAPI.SetAppserviceAPI(asAPI)
	rsAPI.SetUserAPI(userAPI)
	return setup.Monolith{
		Config: cfg, Client: base.CreateClient(cfg, nil), FedClient: fedClient, KeyRing: fsAPI.KeyRing(),
		AppserviceAPI: asAPI, FederationAPI: fsAPI, RoomserverAPI: rsAPI, UserAPI: userAPI,
	}
}

// newDevice returns a device of @name:test, with the account if there is none yet.
func (m *monolith) newDevice(name, deviceID string) *userapitypes.Device {
	m.Helper()
	var account userapitypes.PerformAccountCreationResponse
	err := m.UserAPI.PerformAccountCreation(m.Context(), &userapitypes.PerformAccountCreationRequest{
		AccountType: userapitypes.AccountTypeUser, Localpart: name, Password: "password", OnConflict: userapitypes.ConflictUpdate,
	}, &account)
	if err != nil {
		m.Fatal(err)
	}
	var res userapitypes.PerformDeviceCreationResponse
	err = m.UserAPI.PerformDeviceCreation(m.Context(), &userapitypes.PerformDeviceCreationRequest{
		Localpart: name, DeviceID: &deviceID, AccessToken: name + "-" + deviceID,
	}, &res)
	if err != nil {
		m.Fatal(err)
	}
	return res.Device
}

// call sends a request to the client-server API and returns the answer, whatever its status.
func (m *monolith) call(device *userapitypes.Device, method, path string, body any) (int, gjson.Result) {
	m.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		m.Fatal(err)
	}
	req := httptest.NewRequestWithContext(m.Context(), method, "/_matrix/client/v3"+path, strings.NewReader(string(raw)))
	req.Header.Set("Authorization", "Bearer "+device.AccessToken)
	res := httptest.NewRecorder()
	m.routers.Client.ServeHTTP(res, req)
	return res.Code, gjson.ParseBytes(res.Body.Bytes())
}

// must is call for a request that must be granted.
func (m *monolith) must(device *userapitypes.Device, method, path string, body any) gjson.Result {
	m.Helper()
	code, answer := m.call(device, method, path, body)
	if code != http.StatusOK {
		m.Fatalf("%s %s: %d %s", method, path, code, answer.Raw)
	}
	return answer
}

// settle returns when no consumer of any stream has a message left, so that everything is stored and announced.
func (m *monolith) settle() {
	m.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for before := ""; ; {
		left, state := m.unsettled()
		if left == "" && state == before {
			return
		}
		if before = state; time.Now().After(deadline) {
			m.Fatalf("the streams don't settle: %s", left)
		}
		time.Sleep(time.Millisecond)
	}
}

// unsettled returns which messages are still to be consumed, and the state of all streams.
func (m *monolith) unsettled() (left, state string) {
	for stream := range m.js.Streams() {
		state += fmt.Sprint(stream.Config.Name, stream.State.LastSeq, " ")
		for consumer := range m.js.Consumers(stream.Config.Name) {
			state += fmt.Sprint(consumer.Name, consumer.AckFloor.Stream, " ")
			if n := consumer.NumPending + uint64(consumer.NumAckPending); n > 0 {
				left += fmt.Sprintf("%d for %s ", n, consumer.Name)
			}
		}
	}
	return left, state
}
