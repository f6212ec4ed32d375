package host

import (
	"context"

	"github.com/matrix-org/dendrite/roomserver/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// awaitedRoomserver is the room server that federation's consumers of streams ask. They start before it knows federation's API, without
// which it has no answers: a query that comes too early ends Dendrite by a nil pointer. Here it waits, until the room server is ready.
type awaitedRoomserver struct {
	api.FederationRoomserverAPI
	ready chan struct{} // closed once SetFederationAPI has returned
}

// AwaitRoomserver returns the room server for federationapi.NewInternalAPI, whose consumers ask it before it has answers: they
// wait until ready is called, once, after the room server's SetFederationAPI has returned.
func AwaitRoomserver(of api.FederationRoomserverAPI) (awaited api.FederationRoomserverAPI, ready func()) {
	r := &awaitedRoomserver{of, make(chan struct{})}
	return r, func() { close(r.ready) }
}

func (r *awaitedRoomserver) wait(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *awaitedRoomserver) QueryRoomsForUser(ctx context.Context, userID spec.UserID, membership string) ([]spec.RoomID, error) {
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	return r.FederationRoomserverAPI.QueryRoomsForUser(ctx, userID, membership)
}

func (r *awaitedRoomserver) QueryEventsByID(ctx context.Context, req *api.QueryEventsByIDRequest, res *api.QueryEventsByIDResponse) error {
	if err := r.wait(ctx); err != nil {
		return err
	}
	return r.FederationRoomserverAPI.QueryEventsByID(ctx, req, res)
}

func (r *awaitedRoomserver) QueryMembershipsForRoom(
	ctx context.Context, req *api.QueryMembershipsForRoomRequest, res *api.QueryMembershipsForRoomResponse,
) error {
	if err := r.wait(ctx); err != nil {
		return err
	}
	return r.FederationRoomserverAPI.QueryMembershipsForRoom(ctx, req, res)
}

func (r *awaitedRoomserver) QueryUserIDForSender(ctx context.Context, roomID spec.RoomID, senderID spec.SenderID) (*spec.UserID, error) {
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	return r.FederationRoomserverAPI.QueryUserIDForSender(ctx, roomID, senderID)
}
