package outbox_test

import (
	"context"
	"sync"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// fault is how a call of the store fails.
type fault int

const (
	works      fault = iota
	lostBefore       // nothing was done
	lostAnswer       // it was carried out, but the answer is lost
)

// store is a real store that fails as it is told to.
type store struct {
	storage.Outbox

	mu       sync.Mutex
	faults   map[string]fault
	refusals []storage.Refusal // all that were recorded
	// afterWaiting is told how many EDUs were found before they are returned.
	afterWaiting func(found int)
}

func (s *store) fail(method string, f fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults == nil {
		s.faults = make(map[string]fault)
	}
	s.faults[method] = f
}

func (s *store) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
}

// refused returns the refusals that were recorded, the oldest first.
func (s *store) refused() []storage.Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]storage.Refusal(nil), s.refusals...)
}

func (s *store) do(method string, call func() error) error {
	s.mu.Lock()
	f := s.faults[method]
	s.mu.Unlock()
	if f == lostBefore {
		return faulty.ErrLost
	}
	err := call()
	if f == lostAnswer {
		return faulty.ErrLost
	}
	return err
}

func (s *store) Destinations(ctx context.Context) (d []storage.Destination, err error) {
	err = s.do("Destinations", func() error { d, err = s.Outbox.Destinations(ctx); return err })
	return d, err
}

func (s *store) Waiting(ctx context.Context, destination string, after, through types.Position, limit, maxBytes int) (edus []storage.EDU, err error) {
	err = s.do("Waiting", func() error {
		edus, err = s.Outbox.Waiting(ctx, destination, after, through, limit, maxBytes)
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.afterWaiting != nil {
		s.afterWaiting(len(edus))
	}
	return edus, nil
}

func (s *store) Sent(ctx context.Context, destination string, through types.Position) error {
	return s.do("Sent", func() error { return s.Outbox.Sent(ctx, destination, through) })
}

func (s *store) Refuse(ctx context.Context, refusal storage.Refusal) error {
	return s.do("Refuse", func() error {
		err := s.Outbox.Refuse(ctx, refusal)
		if err == nil {
			s.mu.Lock()
			s.refusals = append(s.refusals, refusal)
			s.mu.Unlock()
		}
		return err
	})
}

func (s *store) Refused(ctx context.Context, destination string, by time.Time, limit int) (refusals []storage.Refusal, err error) {
	err = s.do("Refused", func() error { refusals, err = s.Outbox.Refused(ctx, destination, by, limit); return err })
	if err != nil {
		return nil, err
	}
	return refusals, nil
}

func (s *store) Accepted(ctx context.Context, destination string, position types.Position) error {
	return s.do("Accepted", func() error { return s.Outbox.Accepted(ctx, destination, position) })
}
