package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/getsentry/sentry-go"
	"github.com/matrix-org/dendrite/appservice"
	"github.com/matrix-org/dendrite/federationapi"
	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/internal"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/roomserver"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/base"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/mscs"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/matrix-org/dendrite/userapi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/host"
)

// serve runs the server until it is told to stop. It assembles the components in the order of
// cmd/dendrite/main.go of Dendrite, with the module in its six places.
func serve(cfg *config.Dendrite, configPath string, flags serverFlags) error {
	httpAddr, httpsAddr, err := flags.addresses()
	if err != nil {
		return err
	}
	section, err := host.ReadConfig(configPath)
	if err = errors.Join(verify(cfg), err); err != nil {
		return fmt.Errorf("the configuration has faults:\n%w", err)
	}

	processCtx := process.NewProcessContext()
	// The host's components count themselves in from goroutines of their own, some of them only while
	// waitForShutdown waits for the count; with one that is counted before they start, that is no race.
	processCtx.ComponentStarted()
	internal.SetupStdLogging()
	fatal := handleFatal()
	internal.SetupHookLogging(cfg.Logging)
	internal.SetupPprof()
	base.PlatformSanityChecks()
	logrus.Infof("Dendrite version %s", internal.VersionString())
	if !cfg.ClientAPI.RegistrationDisabled && cfg.ClientAPI.OpenRegistrationWithoutVerificationEnabled {
		logrus.Warn("Open registration is enabled")
	}
	closer, err := cfg.SetupTracing()
	if err != nil {
		return fmt.Errorf("starting tracing: %w", err)
	}
	defer closer.Close() //nolint:errcheck
	if err = startSentry(processCtx, cfg); err != nil {
		return err
	}

	dnsCache := newDNSCache(cfg)
	federationClient := base.CreateFederationClient(cfg, dnsCache)
	cm := sqlutil.NewConnectionManager(processCtx, cfg.Global.DatabaseOptions)
	toDevice, err := host.Start(processCtx, cfg, section, cm, prometheus.DefaultRegisterer)
	if err != nil {
		return err
	}

	routers := httputil.NewRouters()
	caches := caching.NewRistrettoCache(cfg.Global.Cache.EstimatedMaxSize, cfg.Global.Cache.MaxAge, caching.EnableMetrics)
	natsInstance := jetstream.NATSInstance{}
	natsRestarted := toDevice.WatchNATS(processCtx, &natsInstance)
	rsAPI := roomserver.NewInternalAPI(processCtx, cfg, cm, &natsInstance, caches, caching.EnableMetrics)
	awaited, ready := host.AwaitRoomserver(rsAPI)
	fsAPI := federationapi.NewInternalAPI(
		processCtx, cfg, cm, &natsInstance, toDevice.WrapFederationClient(federationClient), awaited, caches, nil, false,
	)
	toDevice.UseFederationAPI(fsAPI, &fedrouting.FederationWakeups{FsAPI: fsAPI})
	keyRing := fsAPI.KeyRing()
	rsAPI.SetFederationAPI(fsAPI, keyRing)
	ready()
	userAPI := toDevice.WrapUserAPI(userapi.NewInternalAPI(
		processCtx, cfg, cm, &natsInstance, rsAPI, federationClient, caching.EnableMetrics, fsAPI.IsBlacklistedOrBackingOff,
	))
	asAPI := appservice.NewInternalAPI(processCtx, cfg, &natsInstance, userAPI, rsAPI)
	rsAPI.SetAppserviceAPI(asAPI)
	rsAPI.SetUserAPI(userAPI)

	monolith := setup.Monolith{
		Config:        cfg,
		Client:        base.CreateClient(cfg, dnsCache),
		FedClient:     federationClient,
		KeyRing:       keyRing,
		AppserviceAPI: asAPI,
		FederationAPI: fsAPI,
		RoomserverAPI: rsAPI,
		UserAPI:       userAPI,
	}
	if err = addStreams(toDevice, processCtx, &monolith, cm, routers); err != nil {
		return fmt.Errorf("adding further streams to /sync: %w", err)
	}
	if err = toDevice.AddAllPublicRoutes(&monolith, processCtx, cfg, routers, cm, &natsInstance, caches, caching.EnableMetrics); err != nil {
		return err
	}
	if len(cfg.MSCs.MSCs) > 0 {
		if err = mscs.Enable(cfg, cm, routers, &monolith, caches); err != nil {
			return fmt.Errorf("enabling MSCs: %w", err)
		}
	}
	if err = countUp(); err != nil {
		return err
	}

	fatal.serving.Store(true)
	defer fatal.serving.Store(false)
	go base.SetupAndServeHTTP(processCtx, cfg, routers, httpAddr, nil, nil)
	if flags.tls() {
		go base.SetupAndServeHTTP(processCtx, cfg, separately(routers), httpsAddr, flags.certFile, flags.keyFile)
	}
	return waitForShutdown(processCtx, toDevice, natsRestarted, fatal)
}

// separately returns the same routes for a second listener. The host adds routes of its own to two of
// the routers for each listener, at the same time and while the first one serves.
func separately(routers httputil.Routers) httputil.Routers {
	own := httputil.NewRouters()
	own.DendriteAdmin.PathPrefix("/").Handler(routers.DendriteAdmin)
	routers.DendriteAdmin, routers.Static = own.DendriteAdmin, own.Static
	return routers
}

func verify(cfg *config.Dendrite) error {
	var faults config.ConfigErrors
	cfg.Verify(&faults)
	errs := make([]error, 0, len(faults))
	for _, fault := range faults {
		errs = append(errs, errors.New(fault))
	}
	return errors.Join(errs...)
}

func startSentry(processCtx *process.ProcessContext, cfg *config.Dendrite) error {
	if !cfg.Global.Sentry.Enabled {
		return nil
	}
	logrus.Info("Setting up Sentry for debugging...")
	err := sentry.Init(sentry.ClientOptions{
		Dsn:              cfg.Global.Sentry.DSN,
		Environment:      cfg.Global.Sentry.Environment,
		Debug:            true,
		ServerName:       string(cfg.Global.ServerName),
		Release:          "dendrite@" + internal.VersionString(),
		AttachStacktrace: true,
	})
	if err != nil {
		return fmt.Errorf("starting Sentry: %w", err)
	}
	processCtx.ComponentStarted()
	go func() {
		<-processCtx.WaitForShutdown()
		if !sentry.Flush(5 * time.Second) {
			logrus.Warn("failed to flush all Sentry events!")
		}
		processCtx.ComponentFinished()
	}()
	return nil
}

func countUp() error {
	up := prometheus.NewCounter(prometheus.CounterOpts{
		Namespace:   "dendrite",
		Name:        "up",
		ConstLabels: map[string]string{"version": internal.VersionString()},
	})
	up.Add(1)
	return prometheus.Register(up)
}

// How long a stop may take: until the host is stopped although the module has not ended, and in all. A query on a connection
// that was lost without a word ends with no deadline of ours. Supervisors kill the server after 30 seconds.
const (
	stopModule = 15 * time.Second
	stopAll    = 25 * time.Second
)

var errStop = errors.New("the stop was given up: something still waits, for an answer of the database perhaps. Nothing that was accepted is lost")

// waitForShutdown is base.WaitForShutdown of Dendrite, except that the module stores what it took before the
// host closes its databases, that a failure of NATS or of the host ends the server too, and that a stop has an end. It returns the
// failure, or that the stop was given up. The first signal asks for a stop, which may be under way already; the second one ends the process at once.
func waitForShutdown(processCtx *process.ProcessContext, toDevice *host.Dendrite, nats <-chan error, fatal *fatalExits) (failure error) {
	signals, ended := make(chan os.Signal, 1), make(chan struct{})
	defer close(ended)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-signals:
		logrus.Warn("Shutdown signal received")
		signal.Reset(syscall.SIGINT, syscall.SIGTERM)
	case failure = <-nats:
		go resetAfter(signals, ended)
	case failure = <-fatal.failed:
		go resetAfter(signals, ended)
	case <-processCtx.WaitForShutdown():
		go resetAfter(signals, ended)
	}
	if failure != nil {
		logrus.WithError(failure).Error("Stopping")
	}
	deadline := time.After(stopAll)
	endsWithin(time.After(stopModule), toDevice.Stop)
	fatal.stopping.Store(true)
	processCtx.ShutdownDendrite()
	processCtx.ComponentFinished() // of serve itself
	if !endsWithin(deadline, processCtx.WaitForComponentsToFinish) {
		failure = errors.Join(failure, errStop)
	}
	logrus.Warn("Dendrite is exiting now")
	return failure
}

// resetAfter leaves the signals after the next one to the system, unless the stop has ended before.
func resetAfter(signals <-chan os.Signal, ended <-chan struct{}) {
	select {
	case <-signals:
		signal.Reset(syscall.SIGINT, syscall.SIGTERM)
	case <-ended:
	}
}

// endsWithin calls f, and returns whether it returned before the deadline.
func endsWithin(deadline <-chan time.Time, f func()) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	select {
	case <-ended:
		return true
	case <-deadline:
		return false
	}
}
