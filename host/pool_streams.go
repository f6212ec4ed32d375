package host

import (
	"context"

	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/streams"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
)

// eventStream is the host's PDUStreamProvider. The streams after it find two things in the request that it puts there even where it
// has no events: the joined rooms and the ignored users. While it has not, Rooms is nil.
type eventStream struct{ transactionStream }

func (s *eventStream) CompleteSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest) synctypes.StreamPosition {
	makeRooms(req)
	return s.transactionStream.CompleteSync(ctx, snapshot, req)
}

// IncrementalSync passes over an empty range: the host reads events, peeks and state after from, up to and including to.
func (s *eventStream) IncrementalSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	if from == to && !req.WantFullState {
		if len(req.Rooms) == 0 {
			req.Rooms = nil
		}
		return to
	}
	makeRooms(req)
	return s.transactionStream.IncrementalSync(ctx, snapshot, req, from, to)
}

// findRooms has the host read the empty range that was passed over, for what it puts into the request.
func (s *eventStream) findRooms(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest) {
	if req.Rooms == nil {
		makeRooms(req)
		s.transactionStream.IncrementalSync(ctx, snapshot, req, req.Since.PDUPosition, req.Since.PDUPosition)
	}
}

func makeRooms(req *synctypes.SyncRequest) {
	if req.Rooms == nil {
		req.Rooms = make(map[string]string)
	}
}

// typingStream is the host's TypingStreamProvider.
type typingStream struct {
	streams.StreamProvider
	events *eventStream
	typing *caching.EDUCache
}

// IncrementalSync passes over a range in which nobody started or stopped typing. Its end does not tell: the host takes back what has
// timed out under a new position, and announces that only with the next one.
func (s *typingStream) IncrementalSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	if s.typing.GetLatestSyncPosition() <= int64(from) {
		return to
	}
	s.events.findRooms(ctx, snapshot, req)
	return s.StreamProvider.IncrementalSync(ctx, snapshot, req, from, to)
}

// rangeStream is one of the host's providers that have nothing to say of an empty range. They read invites and account data after from, up
// to and including to. Receipts they read past to as well, but nothing stays there: each is announced as soon as it is stored.
type rangeStream struct {
	streams.StreamProvider
	events *eventStream
}

func (s *rangeStream) IncrementalSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	if from == to {
		return to
	}
	s.events.findRooms(ctx, snapshot, req)
	return s.StreamProvider.IncrementalSync(ctx, snapshot, req, from, to)
}

// notificationDataStream is the host's NotificationDataStreamProvider.
type notificationDataStream struct{ streams.StreamProvider }

// IncrementalSync passes over a response without rooms: the host adds the counts to the rooms that are in it, whatever the range.
func (s *notificationDataStream) IncrementalSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	if len(req.Response.Rooms.Join) == 0 {
		return s.LatestPosition(ctx)
	}
	return s.StreamProvider.IncrementalSync(ctx, snapshot, req, from, to)
}

// deviceListStream is the host's DeviceListStreamProvider. It is asked for every range, since the host reads changes of keys up to the
// newest, some of which may never have been announced, and counts the one-time keys.
type deviceListStream struct{ streams.StreamProvider }

func (s *deviceListStream) IncrementalSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	return s.StreamProvider.IncrementalSync(ctx, sharedUsers{snapshot}, req, from, to)
}

// sharedUsers is a snapshot which knows that nobody shares a room with no users.
type sharedUsers struct{ storage.DatabaseTransaction }

func (s sharedUsers) SharedUsers(ctx context.Context, userID string, otherUserIDs []string) ([]string, error) {
	if len(otherUserIDs) == 0 {
		return nil, nil
	}
	return s.DatabaseTransaction.SharedUsers(ctx, userID, otherUserIDs)
}

// presenceStream is the host's PresenceStreamProvider.
type presenceStream struct{ transactionStream }

// IncrementalSync passes over an empty range, unless the response tells of members who have joined, whose presence the host adds. The
// host reads past the end of the range, but nothing stays there: each presence is announced as soon as it is stored.
func (s *presenceStream) IncrementalSync(ctx context.Context, snapshot storage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	if from == to && len(req.MembershipChanges) == 0 && len(req.Response.Rooms.Join) == 0 {
		return to
	}
	return s.transactionStream.IncrementalSync(ctx, snapshot, req, from, to)
}
