package host

import (
	"context"

	syncstorage "github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/storage/shared"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// syncDatabase is the sync API's database with the queues taken out of it.
type syncDatabase struct {
	syncstorage.Database
	module  *todevicemodule.Module
	ignored *ignoredSenders
}

// UpdateIgnoresForUser is called by the consumer of account data.
func (d *syncDatabase) UpdateIgnoresForUser(ctx context.Context, userID string, ignores *synctypes.IgnoredUsers) error {
	return d.ignored.change(userID, func() error { return d.Database.UpdateIgnoresForUser(ctx, userID, ignores) })
}

// CleanSendToDeviceUpdates is called by the host's RequestPool with the position of the client's
// since token at the start of each /sync.
func (d *syncDatabase) CleanSendToDeviceUpdates(_ context.Context, userID, deviceID string, before synctypes.StreamPosition) error {
	d.module.AcknowledgeSync(types.Device{UserID: userID, DeviceID: deviceID}, types.Position(before))
	return nil
}

// NewDatabaseSnapshot reports its failure, after which the host does not ask the stream provider at
// all and takes the queue for empty.
func (d *syncDatabase) NewDatabaseSnapshot(ctx context.Context) (*shared.DatabaseTransaction, error) {
	snapshot, err := d.Database.NewDatabaseSnapshot(ctx)
	if err != nil {
		failSync(ctx, err)
	}
	return snapshot, err
}
