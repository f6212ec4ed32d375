package host

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/mux"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

func TestDendriteKeepsTheContract(t *testing.T) {
	logrus.SetOutput(io.Discard)
	t.Cleanup(func() { logrus.SetOutput(os.Stderr) })
	for backend, newDatabase := range map[string]func(t *testing.T) string{
		"postgres": func(t *testing.T) string { return pgtest.NewDatabase(t) },
		"sqlite":   func(t *testing.T) string { return "file:" + filepath.Join(t.TempDir(), "syncapi.db") },
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel() // the kit waits more than it works
			hosttest.Test(t, hosttest.Kit{
				Start:       startDendrite,
				NewDatabase: func() (string, error) { return newDatabase(t), nil },
				TempDir:     func() (string, error) { return t.TempDir(), nil },
			})
		})
	}
}

// running is Dendrite in this process, behind listeners of its own.
type running struct {
	*Dendrite
	process *process.ProcessContext
	servers []*http.Server
	served  sync.WaitGroup
}

// startDendrite is hosttest.Start.
func startDendrite(_ context.Context, s hosttest.Setup) (_ *hosttest.Server, err error) {
	cfg, err := loadConfig(s)
	if err != nil {
		return nil, err
	}
	r := &running{process: process.NewProcessContext()}
	r.process.ComponentStarted() // the host's components count themselves in while others wait for the count
	defer func() {
		if err != nil {
			err = errors.Join(err, r.end())
		}
	}()
	cm := sqlutil.NewConnectionManager(r.process, cfg.Global.DatabaseOptions)
	if r.Dendrite, err = start(r.process, cfg, s.Config, cm, nil, s.Wrap); err != nil {
		return nil, err
	}
	natsInstance, routers := &jetstream.NATSInstance{}, httputil.NewRouters()
	caches := caching.NewRistrettoCache(cfg.Global.Cache.EstimatedMaxSize, cfg.Global.Cache.MaxAge, caching.DisableMetrics)
	m := r.components(r.process, cm, natsInstance, caches)
	if err = r.AddAllPublicRoutes(&m, r.process, cfg, routers, cm, natsInstance, caches, caching.DisableMetrics); err != nil {
		return nil, err
	}
	clients, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.serve(clients, routers)
	federation, err := listenTLS(s.ServerName)
	if err != nil {
		return nil, err
	}
	r.serve(federation, routers)
	return &hosttest.Server{
		ClientURL: "http://" + clients.Addr().String(), FederationURL: "https://" + s.ServerName, Module: r.module,
		Stop: func(context.Context) error { return r.end() },
	}, nil
}

func listenTLS(address string) (net.Listener, error) {
	certificate, key, err := remote.NewCertificate()
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	return tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{pair}})
}

// serve serves what base.SetupAndServeHTTP does to clients and to other servers.
func (r *running) serve(listener net.Listener, routers httputil.Routers) {
	paths := mux.NewRouter().SkipClean(true).UseEncodedPath()
	paths.PathPrefix(httputil.PublicClientPathPrefix).Handler(routers.Client)
	paths.PathPrefix(httputil.PublicKeyPathPrefix).Handler(routers.Keys)
	paths.PathPrefix(httputil.PublicFederationPathPrefix).Handler(routers.Federation)
	server := &http.Server{Handler: paths, ErrorLog: log.New(io.Discard, "", 0)} // of connections that remotes give up
	r.servers = append(r.servers, server)
	r.served.Go(func() { _ = server.Serve(listener) }) // it ends with the server
}

// end ends the host in the order of the command.
func (r *running) end() (err error) {
	if r.Dendrite != nil {
		r.Stop()
	}
	for _, server := range r.servers {
		err = errors.Join(err, server.Close())
	}
	r.served.Wait()
	r.process.ShutdownDendrite()
	r.process.ComponentFinished()
	r.process.WaitForComponentsToFinish()
	return err
}

// loadConfig writes a dendrite.yaml, and the signing key that outlives a restart, and has the host read it.
func loadConfig(s hosttest.Setup) (*config.Dendrite, error) {
	path := func(name string) string { return filepath.Join(s.Dir, name) }
	if err := writeSigningKey(path("matrix_key.pem")); err != nil {
		return nil, err
	}
	yaml := fmt.Sprintf(`
version: 2
global:
  server_name: %q
  private_key: %q
  jetstream: {storage_path: %q}
  cache: {max_size_estimated: 16mb}
client_api:
  registration_disabled: false
  guests_disabled: false
  rate_limiting: {enabled: false}
# Newer versions leave servers on this machine alone otherwise.
federation_api: {key_perspectives: [], disable_tls_validation: true, allow_networks: [], deny_networks: []}
media_api: {base_path: %q}
sync_api: {search: {enabled: false}}
user_api: {bcrypt_cost: 4}
`, s.ServerName, path("matrix_key.pem"), path("jetstream"), path("media"))
	if err := os.WriteFile(path("dendrite.yaml"), []byte(yaml), 0o600); err != nil {
		return nil, err
	}
	cfg, err := config.Load(path("dendrite.yaml"))
	if err != nil {
		return nil, err
	}
	cfg.Global.JetStream.NoLog = true
	if !strings.HasPrefix(s.Database, "file:") {
		cfg.Global.DatabaseOptions = config.DatabaseOptions{
			ConnectionString: config.DataSource(s.Database), MaxOpenConnections: 40, MaxIdleConnections: 10,
		}
		return cfg, nil
	}
	separateDatabases(cfg, s.Dir)
	cfg.SyncAPI.Database.ConnectionString = config.DataSource(s.Database)
	return cfg, nil
}

// writeSigningKey writes a key unless there is one.
func writeSigningKey(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := rand.Read(seed); err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{
		Type: "MATRIX PRIVATE KEY", Headers: map[string]string{"Key-ID": "ed25519:hosttest"}, Bytes: seed,
	}), 0o600)
}
