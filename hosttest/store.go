package hosttest

import (
	"context"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// The calls of storage.Store. What is for operators and for the moves between the module and a host goes past the seam.
type (
	migrateCall     struct{}
	lockCall        struct{}
	releaseCall     struct{}
	claimCall       struct{}
	stateCall       struct{}
	commitCall      struct{ storage.Batch }
	storedCall      struct{ Keys []types.TransactionKey }
	acknowledgeCall struct{ Acknowledgements []storage.Acknowledgement }
	forgetAllCall   struct{ Before time.Time }
	devicesCall     struct{ UserID string }
	purgeCall       struct {
		types.Device
		Through types.Position
	}
	forgetCall       struct{ types.Device }
	destinationsCall struct{}
	sentCall         struct {
		Destination string
		Through     types.Position
	}
	refuseCall   struct{ storage.Refusal }
	refusedCall  struct{ Destination string }
	acceptedCall struct {
		Destination string
		Position    types.Position
	}
	messagesCall struct {
		types.Device
		After, Through types.Position
		Limit          int
	}
	waitingCall struct {
		Destination    string
		After, Through types.Position
	}
)

// seamStore is the homeserver's store as the module sees it.
type seamStore struct {
	storage.Store
	s *seam
}

func (s *seamStore) Migrate(ctx context.Context) error {
	return s.s.throughStore(ctx, migrateCall{}, func() error { return s.Store.Migrate(ctx) })
}

func (s *seamStore) Lock(ctx context.Context) (lock storage.Lock, err error) {
	err = s.s.throughStore(ctx, lockCall{}, func() error {
		lock, err = s.Store.Lock(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &seamLock{Lock: lock, s: s.s}, nil
}

// seamLock is released even after a crash, which ends whoever has it.
type seamLock struct {
	storage.Lock
	s *seam
}

func (l *seamLock) Release() error {
	return l.s.through(context.Background(), releaseCall{}, l.Lock.Release)
}

func (s *seamStore) Claim(ctx context.Context, writer string, atLeast types.Position) (last types.Position, err error) {
	err = s.s.throughStore(ctx, claimCall{}, func() error {
		last, err = s.Store.Claim(ctx, writer, atLeast)
		return err
	})
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	return last + s.s.ahead, err
}

func (s *seamStore) State(ctx context.Context) (state storage.State, err error) {
	err = s.s.throughStore(ctx, stateCall{}, func() error {
		state, err = s.Store.State(ctx)
		return err
	})
	return state, err
}

func (s *seamStore) Commit(ctx context.Context, batch storage.Batch) error {
	return s.s.throughStore(ctx, commitCall{batch}, func() error { return s.Store.Commit(ctx, batch) })
}

func (s *seamStore) Stored(ctx context.Context, keys []types.TransactionKey) (stored map[types.TransactionKey]struct{}, err error) {
	err = s.s.throughStore(ctx, storedCall{keys}, func() error {
		stored, err = s.Store.Stored(ctx, keys)
		return err
	})
	return stored, err
}

func (s *seamStore) Messages(
	ctx context.Context, device types.Device, after, through types.Position, limit int, except []string,
) (found []types.Message, err error) {
	err = s.s.throughStore(ctx, messagesCall{device, after, through, limit}, func() error {
		found, err = s.Store.Messages(ctx, device, after, through, limit, except)
		return err
	})
	return found, err
}

func (s *seamStore) Acknowledge(ctx context.Context, acknowledgements []storage.Acknowledgement, limit int) (done []storage.Acknowledged, err error) {
	err = s.s.throughStore(ctx, acknowledgeCall{acknowledgements}, func() error {
		done, err = s.Store.Acknowledge(ctx, acknowledgements, limit)
		return err
	})
	return done, err
}

func (s *seamStore) ForgetTransactions(ctx context.Context, before time.Time, limit int) (n int, err error) {
	err = s.s.throughStore(ctx, forgetAllCall{before}, func() error {
		n, err = s.Store.ForgetTransactions(ctx, before, limit)
		return err
	})
	return n, err
}

func (s *seamStore) Devices(ctx context.Context, userID string) (deviceIDs []string, err error) {
	err = s.s.throughStore(ctx, devicesCall{userID}, func() error {
		deviceIDs, err = s.Store.Devices(ctx, userID)
		return err
	})
	return deviceIDs, err
}

func (s *seamStore) Purge(ctx context.Context, device types.Device, through types.Position) (n int, err error) {
	err = s.s.throughStore(ctx, purgeCall{device, through}, func() error {
		n, err = s.Store.Purge(ctx, device, through)
		return err
	})
	return n, err
}

func (s *seamStore) Forget(ctx context.Context, device types.Device) error {
	return s.s.throughStore(ctx, forgetCall{device}, func() error { return s.Store.Forget(ctx, device) })
}

func (s *seamStore) Destinations(ctx context.Context) (kept []storage.Destination, err error) {
	err = s.s.throughStore(ctx, destinationsCall{}, func() error {
		kept, err = s.Store.Destinations(ctx)
		return err
	})
	return kept, err
}

func (s *seamStore) Waiting(
	ctx context.Context, destination string, after, through types.Position, limit, maxBytes int,
) (edus []storage.EDU, err error) {
	err = s.s.throughStore(ctx, waitingCall{destination, after, through}, func() error {
		edus, err = s.Store.Waiting(ctx, destination, after, through, limit, maxBytes)
		return err
	})
	return edus, err
}

func (s *seamStore) Sent(ctx context.Context, destination string, through types.Position) error {
	return s.s.throughStore(ctx, sentCall{destination, through}, func() error { return s.Store.Sent(ctx, destination, through) })
}

func (s *seamStore) Refuse(ctx context.Context, refusal storage.Refusal) error {
	return s.s.throughStore(ctx, refuseCall{refusal}, func() error { return s.Store.Refuse(ctx, refusal) })
}

func (s *seamStore) Refused(ctx context.Context, destination string, by time.Time, limit int) (refused []storage.Refusal, err error) {
	err = s.s.throughStore(ctx, refusedCall{destination}, func() error {
		refused, err = s.Store.Refused(ctx, destination, by, limit)
		return err
	})
	return refused, err
}

func (s *seamStore) Accepted(ctx context.Context, destination string, position types.Position) error {
	return s.s.throughStore(ctx, acceptedCall{destination, position}, func() error { return s.Store.Accepted(ctx, destination, position) })
}
