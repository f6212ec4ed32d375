package host

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gorilla/mux"
	"github.com/matrix-org/dendrite/appservice"
	"github.com/matrix-org/dendrite/federationapi"
	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/roomserver"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/base"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/matrix-org/dendrite/userapi"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

func TestDendriteKeepsTheContract(t *testing.T) {
	logrus.SetOutput(io.Discard)
	t.Cleanup(func() { logrus.SetOutput(os.Stderr) })
	kit := func(t *testing.T) hosttest.Kit {
		return hosttest.Kit{Start: startDendrite, TempDir: func() (string, error) { return t.TempDir(), nil }}
	}
	t.Run("postgres", func(t *testing.T) {
		k := kit(t)
		k.NewDatabase = func() (string, error) { return pgtest.NewDatabase(t), nil }
		hosttest.Test(t, k)
	})
	t.Run("sqlite", func(t *testing.T) {
		k := kit(t)
		k.NewDatabase = func() (string, error) { return "file:" + filepath.Join(t.TempDir(), "syncapi.db"), nil }
		hosttest.Test(t, k)
	})
}

// startDendrite is hosttest.Start: Dendrite in this process, assembled as cmd/dendrite-todevice does.
func startDendrite(_ context.Context, s hosttest.Setup) (*hosttest.Server, error) {
	cfg, err := dendriteConfig(s)
	if err != nil {
		return nil, err
	}
	processCtx := process.NewProcessContext()
	stop := func() {
		processCtx.ShutdownDendrite()
		processCtx.WaitForComponentsToFinish()
	}
	cm := sqlutil.NewConnectionManager(processCtx, cfg.Global.DatabaseOptions)
	d, err := start(processCtx, cfg, s.Config, cm, nil, s.Wrap)
	if err != nil {
		stop()
		return nil, err
	}
	routers := httputil.NewRouters()
	caches := caching.NewRistrettoCache(cfg.Global.Cache.EstimatedMaxSize, cfg.Global.Cache.MaxAge, caching.DisableMetrics)
	natsInstance := &jetstream.NATSInstance{}
	fedClient := base.CreateFederationClient(cfg, nil)
	rsAPI := roomserver.NewInternalAPI(processCtx, cfg, cm, natsInstance, caches, caching.DisableMetrics)
	fsAPI := federationapi.NewInternalAPI(processCtx, cfg, cm, natsInstance, d.WrapFederationClient(fedClient), rsAPI, caches, nil, false)
	d.UseFederationAPI(fsAPI, &fedrouting.FederationWakeups{FsAPI: fsAPI})
	rsAPI.SetFederationAPI(fsAPI, fsAPI.KeyRing())
	userAPI := d.WrapUserAPI(userapi.NewInternalAPI(
		processCtx, cfg, cm, natsInstance, rsAPI, fedClient, caching.DisableMetrics, fsAPI.IsBlacklistedOrBackingOff,
	))
	asAPI := appservice.NewInternalAPI(processCtx, cfg, natsInstance, userAPI, rsAPI)
	rsAPI.SetAppserviceAPI(asAPI)
	rsAPI.SetUserAPI(userAPI)
	monolith := setup.Monolith{
		Config: cfg, Client: base.CreateClient(cfg, nil), FedClient: fedClient, KeyRing: fsAPI.KeyRing(),
		AppserviceAPI: asAPI, FederationAPI: fsAPI, RoomserverAPI: rsAPI, UserAPI: userAPI,
	}
	if err = d.AddAllPublicRoutes(&monolith, processCtx, cfg, routers, cm, natsInstance, caches, caching.DisableMetrics); err != nil {
		d.Stop()
		stop()
		return nil, err
	}
	_, port, err := net.SplitHostPort(s.ServerName)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "localhost:"+port)
	if err != nil {
		return nil, err
	}
	handler := mux.NewRouter().SkipClean(true).UseEncodedPath()
	handler.PathPrefix(httputil.PublicClientPathPrefix).Handler(routers.Client)
	handler.PathPrefix(httputil.PublicKeyPathPrefix).Handler(routers.Keys)
	handler.PathPrefix(httputil.PublicFederationPathPrefix).Handler(routers.Federation)
	clients, federation := httptest.NewServer(handler), httptest.NewUnstartedServer(handler)
	_ = federation.Listener.Close()
	federation.Listener = listener
	federation.StartTLS()
	return &hosttest.Server{
		ClientURL: clients.URL, FederationURL: federation.URL, Module: d.module,
		Stop: func(context.Context) error {
			d.Stop()
			clients.CloseClientConnections()
			federation.CloseClientConnections()
			clients.Close()
			federation.Close()
			stop()
			return nil
		},
	}, nil
}

func dendriteConfig(s hosttest.Setup) (*config.Dendrite, error) {
	cfg := &config.Dendrite{}
	cfg.Defaults(config.DefaultOpts{Generate: true, SingleDatabase: true})
	cfg.Global.ServerName = spec.ServerName(s.ServerName)
	cfg.Global.JetStream.StoragePath, cfg.Global.JetStream.NoLog = config.Path(filepath.Join(s.Dir, "jetstream")), true
	cfg.Global.Presence.EnableInbound, cfg.Global.Presence.EnableOutbound = false, false
	cfg.ClientAPI.RateLimiting.Enabled = false
	cfg.ClientAPI.RegistrationDisabled, cfg.ClientAPI.GuestsDisabled = false, false
	cfg.FederationAPI.DisableTLSValidation = true
	cfg.SyncAPI.Fulltext.Enabled = false
	cfg.UserAPI.BCryptCost = 4
	cfg.MediaAPI.BasePath, cfg.MediaAPI.AbsBasePath = config.Path(s.Dir), config.Path(s.Dir)
	if err := cfg.Derive(); err != nil {
		return nil, fmt.Errorf("deriving the configuration: %w", err)
	}
	if !strings.HasPrefix(s.Database, "file:") {
		cfg.Global.DatabaseOptions = config.DatabaseOptions{ConnectionString: config.DataSource(s.Database), MaxOpenConnections: 20, MaxIdleConnections: 10}
		return cfg, nil
	}
	for component, options := range map[string]*config.DatabaseOptions{
		"federationapi": &cfg.FederationAPI.Database, "keyserver": &cfg.KeyServer.Database, "mscs": &cfg.MSCs.Database,
		"roomserver": &cfg.RoomServer.Database, "relayapi": &cfg.RelayAPI.Database,
		"userapi": &cfg.UserAPI.AccountDatabase, "mediaapi": &cfg.MediaAPI.Database,
	} {
		*options = config.DatabaseOptions{ConnectionString: config.DataSource("file:" + filepath.Join(s.Dir, component+".db"))}
	}
	cfg.SyncAPI.Database = config.DatabaseOptions{ConnectionString: config.DataSource(s.Database)}
	return cfg, nil
}
