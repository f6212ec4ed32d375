// Package faulty is a store whose database fails in ways that a real one can't be made to show at
// a chosen moment. Everything that does not fail is done by the real store below it.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Errors that the store returns when told to.
var (
	// ErrLost is what a lost connection looks like.
	ErrLost = fmt.Errorf("%w: connection lost", storage.ErrTransient)
	// ErrFails is what a corrupt index looks like.
	ErrFails = fmt.Errorf("%w: index corrupted", storage.ErrFault)
	// ErrRefused is what a row looks like that the database will never take.
	ErrRefused = errors.New("the database refuses the row")
)

// Commit is what a CommitFault may do with a commit.
type Commit func(ctx context.Context, batch storage.Batch) error

// Store passes everything on to the real store, but for what its faults say.
type Store struct {
	storage.Store

	mu        sync.Mutex
	commit    func(ctx context.Context, batch storage.Batch, real Commit) error
	read      func() error
	lookUp    func(context.Context, []types.TransactionKey) error
	state     func() error
	committed []storage.Batch
}

// OnCommit has every commit done by f, which may call real; nil ends that.
func (s *Store) OnCommit(f func(ctx context.Context, batch storage.Batch, real Commit) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commit = f
}

// OnRead has f asked before every read of a queue; nil ends that.
func (s *Store) OnRead(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = f
}

// OnStored has f asked before every look for transactions; nil ends that.
func (s *Store) OnStored(f func(context.Context, []types.TransactionKey) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookUp = f
}

// OnState has f asked before every look at the position record; nil ends that.
func (s *Store) OnState(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = f
}

// Committed returns the batches that reached the real store, in the order of their commits.
func (s *Store) Committed() []storage.Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]storage.Batch(nil), s.committed...)
}

// Commit is part of storage.Store.
func (s *Store) Commit(ctx context.Context, batch storage.Batch) error {
	s.mu.Lock()
	f := s.commit
	s.mu.Unlock()
	if f == nil {
		return s.realCommit(ctx, batch)
	}
	return f(ctx, batch, s.realCommit)
}

func (s *Store) realCommit(ctx context.Context, batch storage.Batch) error {
	err := s.Store.Commit(ctx, batch)
	if err == nil {
		s.mu.Lock()
		s.committed = append(s.committed, batch)
		s.mu.Unlock()
	}
	return err
}

// Messages is part of storage.Store.
func (s *Store) Messages(ctx context.Context, device types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error) {
	s.mu.Lock()
	f := s.read
	s.mu.Unlock()
	if f != nil {
		if err := f(); err != nil {
			return nil, err
		}
	}
	return s.Store.Messages(ctx, device, after, through, limit, except)
}

// Stored is part of storage.Store.
func (s *Store) Stored(ctx context.Context, keys []types.TransactionKey) (map[types.TransactionKey]struct{}, error) {
	s.mu.Lock()
	f := s.lookUp
	s.mu.Unlock()
	if f != nil {
		if err := f(ctx, keys); err != nil {
			return nil, err
		}
	}
	return s.Store.Stored(ctx, keys)
}

// State is part of storage.Store.
func (s *Store) State(ctx context.Context) (storage.State, error) {
	s.mu.Lock()
	f := s.state
	s.mu.Unlock()
	if f != nil {
		if err := f(); err != nil {
			return storage.State{}, err
		}
	}
	return s.Store.State(ctx)
}

// LoseBefore loses the connection before the next n commits reach the database.
func (s *Store) LoseBefore(n int) {
	s.times(n, func(context.Context, storage.Batch, Commit) error { return ErrLost })
}

// LoseAnswer loses the connection after the next n commits were carried out.
func (s *Store) LoseAnswer(n int) {
	s.times(n, func(ctx context.Context, batch storage.Batch, real Commit) error {
		if err := real(ctx, batch); err != nil {
			return err
		}
		return ErrLost
	})
}

// RefuseType fails every commit that has a message of the type, for good.
func (s *Store) RefuseType(eventType string) { s.failType(eventType, ErrRefused) }

// FailType fails every commit that has a message of the type, as a corrupt index does that the others don't touch.
func (s *Store) FailType(eventType string) { s.failType(eventType, ErrFails) }

func (s *Store) failType(eventType string, err error) {
	s.OnCommit(func(ctx context.Context, batch storage.Batch, real Commit) error {
		for _, d := range batch.Deliveries {
			if d.Type == eventType {
				return err
			}
		}
		return real(ctx, batch)
	})
}

func (s *Store) times(n int, f func(ctx context.Context, batch storage.Batch, real Commit) error) {
	var mu sync.Mutex
	s.OnCommit(func(ctx context.Context, batch storage.Batch, real Commit) error {
		mu.Lock()
		due := n > 0
		n--
		mu.Unlock()
		if due {
			return f(ctx, batch, real)
		}
		return real(ctx, batch)
	})
}
