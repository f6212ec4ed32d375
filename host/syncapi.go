package host

import (
	"context"
	"fmt"

	"github.com/gorilla/mux"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/fulltext"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/matrix-org/dendrite/syncapi/consumers"
	"github.com/matrix-org/dendrite/syncapi/notifier"
	"github.com/matrix-org/dendrite/syncapi/producers"
	"github.com/matrix-org/dendrite/syncapi/routing"
	"github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/streams"
	"github.com/matrix-org/dendrite/syncapi/sync"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/nats-io/nats.go"
)

// syncAPI is what the parts of the host's sync API share.
type syncAPI struct {
	db        *syncDatabase
	typing    *caching.EDUCache
	notifier  *notifier.Notifier
	providers *streams.Streams
}

// addSyncAPI assembles the host's sync API from its public packages, as syncapi.AddPublicRoutes in
// syncapi/syncapi.go does, with four parts replaced: the send-to-device stream provider, the database
// that the RequestPool acknowledges to, the consumer of send-to-device messages, and the RequestPool
// that answers /sync, on the route.
func (d *Dendrite) addSyncAPI(
	m *setup.Monolith,
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	routers httputil.Routers,
	route *mux.Route,
	cm *sqlutil.Connections,
	natsInstance *jetstream.NATSInstance,
	caches *caching.Caches,
	enableMetrics bool,
) error {
	api, err := d.newSyncAPI(m, processContext, cfg, cm, caches)
	if err != nil {
		return err
	}
	return d.startSyncAPI(m, processContext, cfg, routers, route, natsInstance, caches, api, enableMetrics)
}

// startSyncAPI starts the consumers and adds the routes.
func (d *Dendrite) startSyncAPI(
	m *setup.Monolith,
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	routers httputil.Routers,
	route *mux.Route,
	natsInstance *jetstream.NATSInstance,
	caches *caching.Caches,
	api *syncAPI,
	enableMetrics bool,
) (err error) {
	js, natsClient := natsInstance.Prepare(processContext, &cfg.Global.JetStream)
	d.notifier.Store(api.notifier)

	var search *fulltext.Search
	if cfg.SyncAPI.Fulltext.Enabled {
		if search, err = fulltext.New(processContext, cfg.SyncAPI.Fulltext); err != nil {
			return fmt.Errorf("opening the full-text index: %w", err)
		}
	}

	presenceConsumer := consumers.NewPresenceConsumer(
		processContext, &cfg.SyncAPI, js, natsClient, api.db, api.notifier, api.providers.PresenceStreamProvider, m.UserAPI,
	)
	presenceProducer := &producers.FederationAPIPresenceProducer{
		Topic:     cfg.Global.JetStream.Prefixed(jetstream.OutputPresenceEvent),
		JetStream: js,
	}
	newPool := func(db storage.Database, providers *streams.Streams, enableMetrics bool) *sync.RequestPool {
		return sync.NewRequestPool(
			db, &cfg.SyncAPI, countedKeys{m.UserAPI, d.keys}, m.RoomserverAPI, providers, api.notifier, presenceProducer, presenceConsumer, enableMetrics,
		)
	}
	poolDB, err := newPoolDatabase(processContext.Context(), api.db)
	if err != nil {
		return err
	}
	// The metrics are the package's, so one of the pools registers them for both.
	pool := newPool(poolDB, poolStreams(api.providers, api.db, api.typing), enableMetrics)
	hostPool := newPool(api.db, api.providers, false)

	if err = presenceConsumer.Start(); err != nil {
		return fmt.Errorf("starting the presence consumer: %w", err)
	}
	for _, consumer := range d.syncConsumers(m, processContext, cfg, js, natsClient, api, search) {
		if err = consumer.Start(); err != nil {
			return fmt.Errorf("starting %T: %w", consumer, err)
		}
	}
	if err = d.startLeftovers(processContext, js); err != nil {
		return fmt.Errorf("starting the consumer of send-to-device messages: %w", err)
	}

	d.handleSync(route, pool)
	rateLimits := httputil.NewRateLimits(&cfg.ClientAPI.RateLimiting)
	routing.Setup(routers.Client, hostPool, api.db, m.UserAPI, m.RoomserverAPI, &cfg.SyncAPI, caches, search, rateLimits)
	return nil
}

// newSyncAPI returns the shared parts as they are before a consumer starts.
func (d *Dendrite) newSyncAPI(m *setup.Monolith, processContext *process.ProcessContext, cfg *config.Dendrite, cm *sqlutil.Connections, caches *caching.Caches) (*syncAPI, error) {
	db, err := storage.NewSyncServerDatasource(processContext.Context(), cm, &cfg.SyncAPI.Database)
	if err != nil {
		return nil, fmt.Errorf("connecting to the sync API's database: %w", err)
	}
	ignored, err := newIgnoredSenders()
	if err != nil {
		return nil, err
	}
	api := &syncAPI{
		db:       &syncDatabase{Database: db, module: d.module, ignored: ignored},
		typing:   caching.NewTypingCache(),
		notifier: notifier.NewNotifier(m.RoomserverAPI),
	}
	api.providers = d.newStreams(m, api, countedKeys{m.UserAPI, d.keys}, caches)
	api.notifier.SetCurrentPosition(api.providers.Latest(context.Background()))
	if err = api.notifier.Load(context.Background(), api.db); err != nil {
		return nil, fmt.Errorf("loading the notifier: %w", err)
	}
	return api, nil
}

// newStreams returns the host's stream providers, with that of send-to-device messages replaced.
func (d *Dendrite) newStreams(m *setup.Monolith, api *syncAPI, users userapi.SyncUserAPI, caches caching.LazyLoadCache) *streams.Streams {
	providers := streams.NewSyncStreamProviders(api.db, users, m.RoomserverAPI, api.typing, caches, api.notifier)
	providers.SendToDeviceStreamProvider = &provider{module: d.module, ignored: api.db.ignored}
	return providers
}

// syncConsumers are the host's consumers, but for that of send-to-device messages.
func (d *Dendrite) syncConsumers(
	m *setup.Monolith,
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	js nats.JetStreamContext,
	natsClient *nats.Conn,
	api *syncAPI,
	search *fulltext.Search,
) []interface{ Start() error } {
	var appserviceProducer *producers.AppserviceEventProducer
	if len(cfg.AppServiceAPI.Derived.ApplicationServices) > 0 {
		appserviceProducer = &producers.AppserviceEventProducer{
			JetStream: js, Topic: cfg.Global.JetStream.Prefixed(jetstream.OutputAppserviceEvent),
		}
	}
	return []interface{ Start() error }{
		consumers.NewOutputKeyChangeEventConsumer(
			processContext, &cfg.SyncAPI, cfg.Global.JetStream.Prefixed(jetstream.OutputKeyChangeEvent),
			js, m.RoomserverAPI, api.db, api.notifier, api.providers.DeviceListStreamProvider,
		),
		consumers.NewOutputRoomEventConsumer(
			processContext, &cfg.SyncAPI, js, api.db, api.notifier, api.providers.PDUStreamProvider,
			api.providers.InviteStreamProvider, m.RoomserverAPI, search, appserviceProducer,
		),
		consumers.NewOutputClientDataConsumer(
			processContext, &cfg.SyncAPI, js, natsClient, api.db, api.notifier, api.providers.AccountDataStreamProvider, search,
		),
		consumers.NewOutputNotificationDataConsumer(
			processContext, &cfg.SyncAPI, js, api.db, api.notifier, api.providers.NotificationDataStreamProvider,
		),
		consumers.NewOutputTypingEventConsumer(
			processContext, &cfg.SyncAPI, js, api.typing, api.notifier, api.providers.TypingStreamProvider,
		),
		consumers.NewOutputReceiptEventConsumer(
			processContext, &cfg.SyncAPI, js, api.db, api.notifier, api.providers.ReceiptStreamProvider,
		),
	}
}
