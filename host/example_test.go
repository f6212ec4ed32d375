package host_test

import (
	"github.com/matrix-org/dendrite/federationapi"
	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	roomserverapi "github.com/matrix-org/dendrite/roomserver/api"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/host"
)

// A main function of one's own, such as those of the P2P demos, takes the module in with these lines.
// The variables stand for what such a main function has already.
func Example() {
	var (
		cfg          *config.Dendrite
		processCtx   *process.ProcessContext
		cm           *sqlutil.Connections
		routers      httputil.Routers
		natsInstance jetstream.NATSInstance
		caches       *caching.Caches
		monolith     setup.Monolith
		roomserver   roomserverapi.FederationRoomserverAPI
		hostClient   fclient.FederationClient // what base.CreateFederationClient returned
		hostUserAPI  userapi.UserInternalAPI  // what userapi.NewInternalAPI returned
	)

	section, err := host.ReadConfig("dendrite.yaml")
	if err != nil {
		logrus.WithError(err).Fatal("to_device has faults")
	}
	toDevice, err := host.Start(processCtx, cfg, section, cm, prometheus.DefaultRegisterer)
	if err != nil { // before the components of the host are made
		logrus.WithError(err).Fatal("to_device can't be started")
	}
	natsRestarted := toDevice.WatchNATS(processCtx, &natsInstance) // before anything else connects to NATS
	awaited, ready := host.AwaitRoomserver(roomserver)
	fsAPI := federationapi.NewInternalAPI( // with the client that sends what waits along
		processCtx, cfg, cm, &natsInstance, toDevice.WrapFederationClient(hostClient), awaited, caches, nil, false,
	)
	ready() // after the roomserver's SetFederationAPI
	toDevice.UseFederationAPI(fsAPI, &fedrouting.FederationWakeups{FsAPI: fsAPI})
	monolith.UserAPI = toDevice.WrapUserAPI(hostUserAPI) // and hand this one to everything that takes a user API
	err = toDevice.AddAllPublicRoutes(&monolith, processCtx, cfg, routers, cm, &natsInstance, caches, caching.EnableMetrics)
	if err != nil { // in the place of monolith.AddAllPublicRoutes
		logrus.WithError(err).Fatal("the routes can't be added")
	}
	err = <-natsRestarted // or a signal: then, before processCtx.ShutdownDendrite():
	toDevice.Stop()
	logrus.WithError(err).Fatal("to be started again")
}
