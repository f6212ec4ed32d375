// Package host runs the module inside Dendrite. Beside the commands it is the only package that
// imports Dendrite: every seam of the host that the module relies on is here.
package host

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/matrix-org/dendrite/syncapi/notifier"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/positions"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// stopTimeout is how long the last flush may take when the server stops.
const stopTimeout = 10 * time.Second

// Dendrite is the module in one Dendrite process. While the module is not enabled all of its
// methods leave the host as it is.
type Dendrite struct {
	config *config.Dendrite
	cm     *sqlutil.Connections
	log    *logrus.Entry

	module     *todevicemodule.Module // nil unless enabled
	streams    *positions.Registry    // nil unless there are any
	userAPI    atomic.Pointer[userapi.UserInternalAPI]
	tokens     *tokenCache
	keys       *keyCounts
	client     fclient.FederationClient // the host's own
	wakeups    *fedrouting.FederationWakeups
	notifier   atomic.Pointer[notifier.Notifier]
	federation atomic.Pointer[FederationAPI]
	jetStream  atomic.Pointer[nats.JetStreamContext]
	stop       sync.Once
}

// ReadConfig reads the module's section of a dendrite.yaml; see todevicemodule.ParseConfig.
func ReadConfig(dendriteYAML string) (todevicemodule.Config, error) {
	content, err := os.ReadFile(dendriteYAML)
	if err != nil {
		return todevicemodule.Config{}, err
	}
	return todevicemodule.ParseConfig(content)
}

// Start starts the module, unless section.Enabled is false, and has it stopped with the process. It comes
// before the host's components: a second server on the database is to end before it has written
// anything. It returns storage.ErrLocked for that one. The metrics go to registerer, or nowhere
// if it is nil or the host's own metrics are switched off.
func Start(processContext *process.ProcessContext, cfg *config.Dendrite, section todevicemodule.Config, cm *sqlutil.Connections, registerer prometheus.Registerer) (*Dendrite, error) {
	return start(processContext, cfg, section, cm, registerer, func(h todevicemodule.Host) todevicemodule.Host { return h })
}

// start is Start with what the module is to take for the host.
func start(
	processContext *process.ProcessContext,
	cfg *config.Dendrite,
	section todevicemodule.Config,
	cm *sqlutil.Connections,
	registerer prometheus.Registerer,
	wrap func(todevicemodule.Host) todevicemodule.Host,
) (*Dendrite, error) {
	d := &Dendrite{config: cfg, cm: cm, log: logrus.WithField("component", "to_device")}
	if !section.Enabled {
		return d, nil
	}
	if !cfg.Global.Metrics.Enabled {
		registerer = nil
	}
	module, err := todevicemodule.New(section, wrap(d), registerer, d.log)
	if err != nil {
		return nil, err
	}
	if d.tokens, err = newTokenCache(module.WatchDevices); err != nil {
		return nil, err
	}
	if d.keys, err = newKeyCounts(); err != nil {
		return nil, err
	}
	if err = module.Start(processContext.Context()); err != nil {
		return nil, err
	}
	d.module = module
	processContext.ComponentStarted()
	go func() {
		<-processContext.WaitForShutdown()
		d.Stop()
		processContext.ComponentFinished()
	}()
	return d, nil
}

// Stop stores what was taken and stops the module. The host closes its databases when its process
// context is shut down, so a last flush needs Stop to be called before that; afterwards it still
// ends the goroutines.
func (d *Dendrite) Stop() {
	if d.module == nil {
		return
	}
	d.stop.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := d.module.Stop(ctx); err != nil {
			d.log.WithError(err).Warn("to_device: stopping did not end cleanly")
		}
	})
}

// IsLocalServer is part of todevicemodule.Host.
func (d *Dendrite) IsLocalServer(serverName string) bool {
	return d.config.Global.IsLocalServerName(spec.ServerName(serverName))
}

// UserDevices is part of devices.Source.
func (d *Dendrite) UserDevices(ctx context.Context, userID string) ([]string, error) {
	api := d.userAPI.Load()
	if api == nil {
		return nil, devices.ErrNotReady
	}
	if server, valid := wire.ServerOf(userID); !valid || !d.IsLocalServer(server) {
		return nil, devices.ErrNotLocal
	}
	var res userapi.QueryDevicesResponse
	if err := (*api).QueryDevices(ctx, &userapi.QueryDevicesRequest{UserID: userID}, &res); err != nil {
		return nil, fmt.Errorf("asking the user API: %w", err)
	}
	deviceIDs := make([]string, 0, len(res.Devices))
	for i := range res.Devices {
		deviceIDs = append(deviceIDs, res.Devices[i].ID)
	}
	return deviceIDs, nil
}

// VirtualDevice is part of todevicemodule.Host: userapi/internal/user_api.go, queryAppServiceToken. Devices with an empty ID,
// which the host made while the module was not there, it does not list either.
func (d *Dendrite) VirtualDevice(deviceID string) bool {
	return deviceID == "AS_Device" || deviceID == ""
}

// DeviceOwners is part of devices.Source.
func (d *Dendrite) DeviceOwners(ctx context.Context, deviceIDs []string) (map[string]string, error) {
	api := d.userAPI.Load()
	if api == nil {
		return nil, devices.ErrNotReady
	}
	var res userapi.QueryDeviceInfosResponse
	if err := (*api).QueryDeviceInfos(ctx, &userapi.QueryDeviceInfosRequest{DeviceIDs: deviceIDs}, &res); err != nil {
		return nil, fmt.Errorf("asking the user API: %w", err)
	}
	owners := make(map[string]string, len(res.DeviceInfo))
	for deviceID, info := range res.DeviceInfo {
		owners[deviceID] = info.UserID
	}
	return owners, nil
}

// WakeDevices is part of todevicemodule.Host.
func (d *Dendrite) WakeDevices(position types.Position, wakeups []writer.Wakeup) {
	n := d.notifier.Load()
	if n == nil {
		return // nobody can be waiting yet
	}
	for _, w := range wakeups {
		n.OnNewSendToDevice(w.UserID, w.DeviceIDs, synctypes.StreamingToken{
			SendToDevicePosition: synctypes.StreamPosition(position),
		})
	}
}
