package host

import (
	"context"
	"fmt"

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
	"github.com/nats-io/nats.go"
)

// addSyncAPI assembles the host's sync API from its public packages, as syncapi.AddPublicRoutes in
// syncapi/syncapi.go does, with three parts replaced: the send-to-device stream provider, the database
// that the RequestPool acknowledges to, and the consumer of send-to-device messages.
func (d *Dendrite) addSyncAPI(
	m *setup.Monolith,
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	routers httputil.Routers,
	cm *sqlutil.Connections,
	natsInstance *jetstream.NATSInstance,
	caches *caching.Caches,
	enableMetrics bool,
) error {
	js, natsClient := natsInstance.Prepare(processContext, &cfg.Global.JetStream)
	hostDB, err := storage.NewSyncServerDatasource(processContext.Context(), cm, &cfg.SyncAPI.Database)
	if err != nil {
		return fmt.Errorf("connecting to the sync API's database: %w", err)
	}
	db := &syncDatabase{Database: hostDB, module: d.module}

	typing := caching.NewTypingCache()
	notify := notifier.NewNotifier(m.RoomserverAPI)
	providers := streams.NewSyncStreamProviders(db, m.UserAPI, m.RoomserverAPI, typing, caches, notify)
	providers.SendToDeviceStreamProvider = &provider{module: d.module}
	notify.SetCurrentPosition(providers.Latest(context.Background()))
	if err = notify.Load(context.Background(), db); err != nil {
		return fmt.Errorf("loading the notifier: %w", err)
	}
	d.notifier.Store(notify)

	var search *fulltext.Search
	if cfg.SyncAPI.Fulltext.Enabled {
		if search, err = fulltext.New(processContext, cfg.SyncAPI.Fulltext); err != nil {
			return fmt.Errorf("opening the full-text index: %w", err)
		}
	}

	presenceConsumer := consumers.NewPresenceConsumer(
		processContext, &cfg.SyncAPI, js, natsClient, db, notify, providers.PresenceStreamProvider, m.UserAPI,
	)
	presenceProducer := &producers.FederationAPIPresenceProducer{
		Topic:     cfg.Global.JetStream.Prefixed(jetstream.OutputPresenceEvent),
		JetStream: js,
	}
	pool := sync.NewRequestPool(
		db, &cfg.SyncAPI, m.UserAPI, m.RoomserverAPI, providers, notify, presenceProducer, presenceConsumer, enableMetrics,
	)

	if err = presenceConsumer.Start(); err != nil {
		return fmt.Errorf("starting the presence consumer: %w", err)
	}
	for _, consumer := range d.syncConsumers(m, processContext, cfg, js, natsClient, db, typing, notify, providers, search) {
		if err = consumer.Start(); err != nil {
			return fmt.Errorf("starting %T: %w", consumer, err)
		}
	}
	if err = d.startLeftovers(processContext, js); err != nil {
		return fmt.Errorf("starting the consumer of send-to-device messages: %w", err)
	}

	d.addSyncRoute(routers.Client, pool)
	rateLimits := httputil.NewRateLimits(&cfg.ClientAPI.RateLimiting)
	routing.Setup(routers.Client, pool, db, m.UserAPI, m.RoomserverAPI, &cfg.SyncAPI, caches, search, rateLimits)
	return nil
}

// syncConsumers are the host's consumers, but for that of send-to-device messages.
func (d *Dendrite) syncConsumers(
	m *setup.Monolith,
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	js nats.JetStreamContext,
	natsClient *nats.Conn,
	db storage.Database,
	typing *caching.EDUCache,
	notify *notifier.Notifier,
	providers *streams.Streams,
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
			js, m.RoomserverAPI, db, notify, providers.DeviceListStreamProvider,
		),
		consumers.NewOutputRoomEventConsumer(
			processContext, &cfg.SyncAPI, js, db, notify, providers.PDUStreamProvider,
			providers.InviteStreamProvider, m.RoomserverAPI, search, appserviceProducer,
		),
		consumers.NewOutputClientDataConsumer(
			processContext, &cfg.SyncAPI, js, natsClient, db, notify, providers.AccountDataStreamProvider, search,
		),
		consumers.NewOutputNotificationDataConsumer(
			processContext, &cfg.SyncAPI, js, db, notify, providers.NotificationDataStreamProvider,
		),
		consumers.NewOutputTypingEventConsumer(
			processContext, &cfg.SyncAPI, js, typing, notify, providers.TypingStreamProvider,
		),
		consumers.NewOutputReceiptEventConsumer(
			processContext, &cfg.SyncAPI, js, db, notify, providers.ReceiptStreamProvider,
		),
	}
}
