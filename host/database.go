package host

import (
	"context"
	"database/sql"
	"errors"
	"strconv"

	syncstorage "github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/storage/shared"
	filtertypes "github.com/matrix-org/dendrite/syncapi/synctypes"
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

// GetFilter reports its failure, for which the host blames the client with a 400: a database that is away, or a stop that cuts
// the query off. One that there is none of is no failure, the host then takes its default; nor is an ID that the host never gave out, which
// PostgreSQL refuses, and which is the client's fault.
func (d *syncDatabase) GetFilter(ctx context.Context, target *filtertypes.Filter, localpart, filterID string) error {
	err := d.Database.GetFilter(ctx, target, localpart, filterID)
	if _, foreign := strconv.ParseInt(filterID, 10, 32); err != nil && foreign == nil && !errors.Is(err, sql.ErrNoRows) {
		failSync(ctx, err)
	}
	return err
}
