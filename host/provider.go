package host

import (
	"context"

	"github.com/matrix-org/dendrite/syncapi/storage"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// provider takes the place of the host's SendToDeviceStreamProvider.
type provider struct {
	module  *todevicemodule.Module
	ignored *ignoredSenders
}

// Setup does nothing: the module's own start has found the latest position.
func (p *provider) Setup(context.Context, storage.DatabaseTransaction) {}

// Advance does nothing: the position advances with the module's commits.
func (p *provider) Advance(synctypes.StreamPosition) {}

// LatestPosition returns the last visible position.
func (p *provider) LatestPosition(context.Context) synctypes.StreamPosition {
	return synctypes.StreamPosition(p.module.LatestPosition())
}

// CompleteSync fills in the messages for a /sync without a since token.
func (p *provider) CompleteSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest) synctypes.StreamPosition {
	return p.IncrementalSync(ctx, snapshot, req, 0, p.LatestPosition(ctx))
}

// IncrementalSync fills in the messages after from, up to and including to.
func (p *provider) IncrementalSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	device := types.Device{UserID: req.Device.UserID, DeviceID: req.Device.ID}
	messages, next, err := p.module.ReadForSync(ctx, device, types.Position(from), types.Position(to), func(ctx context.Context) ([]string, error) {
		return p.ignored.of(ctx, req.Device.UserID, snapshot)
	})
	if err != nil {
		failSync(ctx, err)
		return from
	}
	if !noteRead(ctx, messages) {
		p.module.HandedOver(device, messages)
	}
	for _, m := range messages {
		req.Response.ToDevice.Events = append(req.Response.ToDevice.Events, gomatrixserverlib.SendToDeviceEvent{
			Sender: m.Sender, Type: m.Type, Content: m.Content,
		})
	}
	return synctypes.StreamPosition(next)
}
