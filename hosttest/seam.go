package hosttest

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// errCut is what the store answers to everything once it was cut off. It is no transient error, so that nobody tries again.
var errCut = errors.New("cut off from the database, as by a crash")

// seam stands between the module and the homeserver at each start: it notes what the module asks, and does in its place what a check tells it
// to. Each method of todevicemodule.Host and storage.Store has a type of call. Its methods are safe for concurrent use.
type seam struct {
	mu     sync.Mutex
	calls  []any
	before map[reflect.Type]func(context.Context, any) error
	after  map[reflect.Type]func(context.Context, any, error) error
	isCut  bool
	ahead  types.Position
	host   todevicemodule.Host
	store  storage.Store
}

func newSeam() *seam {
	return &seam{
		before: make(map[reflect.Type]func(context.Context, any) error), after: make(map[reflect.Type]func(context.Context, any, error) error),
	}
}

// wrap is Setup.Wrap.
func (s *seam) wrap(host todevicemodule.Host) todevicemodule.Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.host = host
	return &seamHost{Host: host, s: s}
}

// began forgets what was before a start.
func (s *seam) began() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls, s.isCut = nil, false
	s.host, s.store = nil, nil
}

// cut refuses everything that the module asks of its store until the next start.
func (s *seam) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isCut = true
}

// leadBy has the next starts hand out positions that are further on than the store knows, as those were that were handed out before
// a database was restored from a backup. It is for starts in which no message is sent.
func (s *seam) leadBy(lead types.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead = lead
}

// homeserver returns the homeserver as the module would see it without the seam, and realStore its store.
func (s *seam) homeserver() todevicemodule.Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host
}

func (s *seam) realStore() storage.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store
}

// forget forgets the calls up to now.
func (s *seam) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

// calls returns the calls of one type since the start, or since they were forgotten, in their order. They are noted before they are carried out.
func calls[C any](s *seam) (found []C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if c, ok := c.(C); ok {
			found = append(found, c)
		}
	}
	return found
}

// before has every call of a type go through f first, which may wait; the call is not carried out where f returns an error. There is one f for
// each type, until it is taken away.
func before[C any](s *seam, f func(ctx context.Context, call C) error) (takeAway func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := reflect.TypeFor[C]()
	s.before[key] = func(ctx context.Context, call any) error { return f(ctx, call.(C)) }
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.before, key)
	}
}

// fail has every call of a type fail with the error, not carried out.
func fail[C any](s *seam, err error) (takeAway func()) {
	return before(s, func(context.Context, C) error { return err })
}

// after has the error of every call of a type, once it was carried out, go through f, which returns the one to be answered. There is one f for
// each type, until it is taken away.
func after[C any](s *seam, f func(ctx context.Context, call C, err error) error) (takeAway func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := reflect.TypeFor[C]()
	s.after[key] = func(ctx context.Context, call any, err error) error { return f(ctx, call.(C), err) }
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.after, key)
	}
}

// through carries a call out, unless a check has it fail.
func (s *seam) through(ctx context.Context, call any, carryOut func() error) error {
	s.mu.Lock()
	s.calls = append(s.calls, call)
	first, last := s.before[reflect.TypeOf(call)], s.after[reflect.TypeOf(call)]
	s.mu.Unlock()
	if first != nil {
		if err := first(ctx, call); err != nil {
			return err
		}
	}
	err := carryOut()
	if last != nil {
		return last(ctx, call, err)
	}
	return err
}

// throughStore is through for what a crash cuts off, be it about to begin or held up.
func (s *seam) throughStore(ctx context.Context, call any, carryOut func() error) error {
	return s.through(ctx, call, func() error {
		s.mu.Lock()
		isCut := s.isCut
		s.mu.Unlock()
		if isCut {
			return errCut
		}
		return carryOut()
	})
}

// The calls of todevicemodule.Host, but for those that are asked for all the time.
type (
	userDevicesCall  struct{ UserID string }
	deviceOwnersCall struct{ DeviceIDs []string }
	ringCall         struct{ Destination string }
	backoffCall      struct{ Destination string }
	reviveCall       struct{ Destination string }
	reachCall        struct{ Destination string }
	markStaleCall    struct{ UserID, DeviceID string }
	storeCall        struct{}
	foreignQueueCall struct{}
	wakeDevicesCall  struct {
		Position types.Position
		Wakeups  []writer.Wakeup
	}
)

// seamHost is the homeserver as the module sees it.
type seamHost struct {
	todevicemodule.Host
	s *seam
}

func (h *seamHost) UserDevices(ctx context.Context, userID string) (deviceIDs []string, err error) {
	err = h.s.through(ctx, userDevicesCall{userID}, func() error {
		deviceIDs, err = h.Host.UserDevices(ctx, userID)
		return err
	})
	return deviceIDs, err
}

func (h *seamHost) DeviceOwners(ctx context.Context, deviceIDs []string) (owners map[string]string, err error) {
	err = h.s.through(ctx, deviceOwnersCall{deviceIDs}, func() error {
		owners, err = h.Host.DeviceOwners(ctx, deviceIDs)
		return err
	})
	return owners, err
}

func (h *seamHost) Ring(ctx context.Context, destination string) error {
	return h.s.through(ctx, ringCall{destination}, func() error { return h.Host.Ring(ctx, destination) })
}

func (h *seamHost) Backoff(destination string) (until time.Time, givenUp bool) {
	_ = h.s.through(context.Background(), backoffCall{destination}, func() error {
		until, givenUp = h.Host.Backoff(destination)
		return nil
	})
	return until, givenUp
}

func (h *seamHost) Revive(destination string) {
	_ = h.s.through(context.Background(), reviveCall{destination}, func() error {
		h.Host.Revive(destination)
		return nil
	})
}

func (h *seamHost) Reach(ctx context.Context, destination string) error {
	return h.s.through(ctx, reachCall{destination}, func() error { return h.Host.Reach(ctx, destination) })
}

func (h *seamHost) MarkDeviceListStale(ctx context.Context, userID, deviceID string) error {
	return h.s.through(ctx, markStaleCall{userID, deviceID}, func() error { return h.Host.MarkDeviceListStale(ctx, userID, deviceID) })
}

func (h *seamHost) WakeDevices(position types.Position, wakeups []writer.Wakeup) {
	_ = h.s.through(context.Background(), wakeDevicesCall{position, wakeups}, func() error {
		h.Host.WakeDevices(position, wakeups)
		return nil
	})
}

func (h *seamHost) Store(config todevicemodule.DatabaseConfig) (store storage.Store, err error) {
	err = h.s.through(context.Background(), storeCall{}, func() error {
		store, err = h.Host.Store(config)
		return err
	})
	if err != nil {
		return nil, err
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	h.s.store = store
	return &seamStore{Store: store, s: h.s}, nil
}

func (h *seamHost) ForeignQueue(config todevicemodule.DatabaseConfig) (queue storage.ForeignQueue, err error) {
	err = h.s.through(context.Background(), foreignQueueCall{}, func() error {
		queue, err = h.Host.ForeignQueue(config)
		return err
	})
	return queue, err
}
