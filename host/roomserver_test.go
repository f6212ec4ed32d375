package host

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/matrix-org/dendrite/roomserver/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// countedQueries counts the queries that get through to a room server.
type countedQueries struct {
	api.FederationRoomserverAPI
	n atomic.Int32
}

func (a *countedQueries) QueryRoomsForUser(context.Context, spec.UserID, string) ([]spec.RoomID, error) {
	a.n.Add(1)
	return nil, nil
}

func (a *countedQueries) QueryEventsByID(context.Context, *api.QueryEventsByIDRequest, *api.QueryEventsByIDResponse) error {
	a.n.Add(1)
	return nil
}

func (a *countedQueries) QueryMembershipsForRoom(context.Context, *api.QueryMembershipsForRoomRequest, *api.QueryMembershipsForRoomResponse) error {
	a.n.Add(1)
	return nil
}

func (a *countedQueries) QueryUserIDForSender(context.Context, spec.RoomID, spec.SenderID) (*spec.UserID, error) {
	a.n.Add(1)
	return nil, nil
}

// No query gets to a room server that is not ready, and all do once it is. Who does not wait any longer gets an error.
func TestQueriesWaitForTheRoomserver(t *testing.T) {
	queries := map[string]func(ctx context.Context, r api.FederationRoomserverAPI) error{
		"rooms": func(ctx context.Context, r api.FederationRoomserverAPI) error {
			_, err := r.QueryRoomsForUser(ctx, spec.UserID{}, spec.Join)
			return err
		},
		"events": func(ctx context.Context, r api.FederationRoomserverAPI) error {
			return r.QueryEventsByID(ctx, nil, nil)
		},
		"memberships": func(ctx context.Context, r api.FederationRoomserverAPI) error {
			return r.QueryMembershipsForRoom(ctx, nil, nil)
		},
		"sender": func(ctx context.Context, r api.FederationRoomserverAPI) error {
			_, err := r.QueryUserIDForSender(ctx, spec.RoomID{}, "")
			return err
		},
	}
	for name, query := range queries {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &countedQueries{}
				r, ready := AwaitRoomserver(a)
				ctx, cancel := context.WithCancel(t.Context())
				impatient, patient := make(chan error, 1), make(chan error, 1)
				go func() { impatient <- query(ctx, r) }()
				go func() { patient <- query(t.Context(), r) }()
				synctest.Wait()
				if a.n.Load() != 0 {
					t.Error("a query got to a room server that is not ready")
				}
				cancel()
				if err := <-impatient; !errors.Is(err, context.Canceled) {
					t.Errorf("a query that was given up returned %v", err)
				}
				ready()
				if err := <-patient; err != nil || a.n.Load() != 1 {
					t.Errorf("the query returned %v, and %d got through", err, a.n.Load())
				}
			})
		})
	}
}
