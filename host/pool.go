package host

import (
	"context"
	"fmt"

	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/storage/shared"
	"github.com/matrix-org/dendrite/syncapi/streams"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
)

// poolDatabase is the database of the RequestPool that answers /sync. The pool opens a snapshot for each of its nine
// streams, whether they have anything to read or not; from here it gets some that cost nothing.
type poolDatabase struct {
	storage.Database
	queries *shared.Database
}

// newPoolDatabase takes the host's queries out of a snapshot of db, the one place where they can be had.
func newPoolDatabase(ctx context.Context, db storage.Database) (*poolDatabase, error) {
	snapshot, err := db.NewDatabaseSnapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening a snapshot of the sync API's database: %w", err)
	}
	return &poolDatabase{Database: db, queries: snapshot.Database}, snapshot.Rollback()
}

// NewDatabaseSnapshot returns a snapshot without a transaction, as the host itself has it on SQLite: each query sees the
// database as it is then, and Commit and Rollback do nothing.
func (d *poolDatabase) NewDatabaseSnapshot(context.Context) (*shared.DatabaseTransaction, error) {
	return &shared.DatabaseTransaction{Database: d.queries}, nil
}

// poolStreams returns the host's stream providers for a RequestPool on a poolDatabase, with the same answers. Those that read with
// more than one query do it in a transaction of their own on db. None of them reads where that can have no outcome.
func poolStreams(host *streams.Streams, db storage.Database, typing *caching.EDUCache) *streams.Streams {
	events := &eventStream{transactionStream{host.PDUStreamProvider, db}}
	return &streams.Streams{
		PDUStreamProvider:              events,
		TypingStreamProvider:           &typingStream{host.TypingStreamProvider, events, typing},
		ReceiptStreamProvider:          &rangeStream{host.ReceiptStreamProvider, events},
		InviteStreamProvider:           &rangeStream{&transactionStream{host.InviteStreamProvider, db}, events},
		SendToDeviceStreamProvider:     host.SendToDeviceStreamProvider,
		AccountDataStreamProvider:      &rangeStream{host.AccountDataStreamProvider, events},
		NotificationDataStreamProvider: &notificationDataStream{host.NotificationDataStreamProvider},
		DeviceListStreamProvider:       &deviceListStream{host.DeviceListStreamProvider},
		PresenceStreamProvider:         &presenceStream{transactionStream{host.PresenceStreamProvider, db}},
	}
}

// transactionStream reads in a transaction of its own.
type transactionStream struct {
	streams.StreamProvider
	db storage.Database
}

func (s *transactionStream) CompleteSync(ctx context.Context, _ storage.DatabaseTransaction, req *synctypes.SyncRequest) synctypes.StreamPosition {
	return s.read(ctx, req, 0, func(snapshot storage.DatabaseTransaction) synctypes.StreamPosition {
		return s.StreamProvider.CompleteSync(ctx, snapshot, req)
	})
}

func (s *transactionStream) IncrementalSync(ctx context.Context, _ storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	return s.read(ctx, req, from, func(snapshot storage.DatabaseTransaction) synctypes.StreamPosition {
		return s.StreamProvider.IncrementalSync(ctx, snapshot, req, from, to)
	})
}

// read returns from if there is no transaction to be had.
func (s *transactionStream) read(ctx context.Context, req *synctypes.SyncRequest, from synctypes.StreamPosition, f func(storage.DatabaseTransaction) synctypes.StreamPosition) synctypes.StreamPosition {
	snapshot, err := s.db.NewDatabaseSnapshot(ctx)
	if err != nil {
		req.Log.WithError(err).Error("Failed to acquire database snapshot for sync request")
		return from
	}
	succeeded := false
	defer sqlutil.EndTransactionWithCheck(snapshot, &succeeded, &err)
	next := f(snapshot)
	succeeded = true
	return next
}
