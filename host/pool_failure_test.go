package host

import (
	"context"
	"errors"
	"testing"

	syncstorage "github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/streams"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
)

// unreadable is a provider of a stream that must not be read.
type unreadable struct {
	streams.StreamProvider
	t *testing.T
}

func (s unreadable) CompleteSync(context.Context, syncstorage.DatabaseTransaction, *synctypes.SyncRequest) synctypes.StreamPosition {
	s.t.Error("it was read")
	return 1
}

func (s unreadable) IncrementalSync(context.Context, syncstorage.DatabaseTransaction, *synctypes.SyncRequest, synctypes.StreamPosition, synctypes.StreamPosition) synctypes.StreamPosition {
	s.t.Error("it was read")
	return 1
}

// The host would take the stream for read up to its end.
func TestStreamWithoutATransactionFailsTheSync(t *testing.T) {
	away := errors.New("the database is away")
	stream := transactionStream{unreadable{t: t}, &syncDatabase{Database: failingDatabase{err: away}}}
	for name, read := range map[string]func(context.Context, *synctypes.SyncRequest) synctypes.StreamPosition{
		"complete": func(ctx context.Context, req *synctypes.SyncRequest) synctypes.StreamPosition {
			return stream.CompleteSync(ctx, nil, req)
		},
		"incremental": func(ctx context.Context, req *synctypes.SyncRequest) synctypes.StreamPosition {
			return stream.IncrementalSync(ctx, nil, req, 0, 7)
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := syncRequest()
			req.Log = quietLog()
			ctx, failed := withSyncFailure(t.Context())
			defer failed.cancel()
			if next := read(ctx, req); next != 0 || !errors.Is(failed.failure(), away) {
				t.Errorf("the next position is %d, the failure %v", next, failed.failure())
			}
		})
	}
}
