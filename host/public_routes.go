package host

import (
	"fmt"

	"github.com/matrix-org/dendrite/clientapi"
	"github.com/matrix-org/dendrite/federationapi"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/internal/transactions"
	"github.com/matrix-org/dendrite/mediaapi"
	"github.com/matrix-org/dendrite/relayapi"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// AddAllPublicRoutes takes the place of Monolith.AddAllPublicRoutes: it adds the module's routes and
// then the host's. The monolith's user API must come from WrapUserAPI, and
// UseFederationAPI must have been called.
// While the module is not enabled it is the monolith's own method.
func (d *Dendrite) AddAllPublicRoutes(
	m *setup.Monolith,
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	routers httputil.Routers,
	cm *sqlutil.Connections,
	natsInstance *jetstream.NATSInstance,
	caches *caching.Caches,
	enableMetrics bool,
) error {
	if d.module == nil {
		m.AddAllPublicRoutes(processContext, cfg, routers, cm, natsInstance, caches, enableMetrics)
		return nil
	}
	if _, watched := m.UserAPI.(*watchedUserAPI); !watched {
		return fmt.Errorf("the monolith's user API is not the one that WrapUserAPI returned")
	}
	if d.federation.Load() == nil {
		return fmt.Errorf("the module was not given the federation API: UseFederationAPI comes first")
	}
	js, _ := natsInstance.Prepare(processContext, &cfg.Global.JetStream)
	d.jetStream.Store(&js)
	d.addSendToDeviceRoute(routers.Client)
	syncRoute := newSyncRoute(routers.Client)
	d.addAdminRoutes(routers.DendriteAdmin)
	routers.Federation.Use(d.hint)
	d.addSendRoute(m, processContext, cfg, routers, natsInstance)

	var userDirectory userapi.QuerySearchProfilesAPI = m.UserAPI
	if m.ExtUserDirectoryProvider != nil {
		userDirectory = m.ExtUserDirectoryProvider
	}
	clientapi.AddPublicRoutes(
		processContext, routers, cfg, natsInstance, m.FedClient, m.RoomserverAPI, m.AppserviceAPI, transactions.New(),
		m.FederationAPI, m.UserAPI, userDirectory, m.ExtPublicRoomsProvider, enableMetrics,
	)
	federationapi.AddPublicRoutes(
		processContext, routers, cfg, natsInstance, m.UserAPI, m.FedClient, m.KeyRing, m.RoomserverAPI, m.FederationAPI, enableMetrics,
	)
	mediaapi.AddPublicRoutes(routers, cm, cfg, m.UserAPI, m.Client, m.FedClient, m.KeyRing)
	if err := d.addSyncAPI(m, processContext, cfg, routers, syncRoute, cm, natsInstance, caches, enableMetrics); err != nil {
		return err
	}
	if m.RelayAPI != nil {
		relayapi.AddPublicRoutes(routers, cfg, m.KeyRing, m.RelayAPI)
	}
	return nil
}
