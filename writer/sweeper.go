package writer

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// sweepInterval is how often all queues are looked at, sweepRetry when after a failure, notReadyRetry when while the
	// host starts, and usersPerSecond how fast: each user takes two short queries.
	sweepInterval  = time.Hour
	sweepRetry     = 10 * time.Second
	notReadyRetry  = time.Second
	usersPerSecond = 200
	usersAtOnce    = 500
	// boundInterval is the default of Sweeper.Interval.
	boundInterval = 5 * time.Second
)

// Bounds are what may wait for one device; zero means that there is no bound.
type Bounds struct {
	Messages int
	Bytes    int64
	Age      time.Duration
}

// Sweeper removes what a crash has left of deleted devices, and holds queues to their bounds, in three goroutines of its own:
// a sweep over many users takes long, a clean-up waits for the user's turn, and grown queues wait for neither.
type Sweeper struct {
	// Interval is how soon a queue that has grown is held to its bounds. The default is 5 seconds. It is set before Start.
	Interval time.Duration

	cleaner *Cleaner
	bounds  Bounds
	log     *logrus.Entry
	pace    *rate.Limiter
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	grown map[types.Device]struct{} // since they were last held to the bounds
}

// NewSweeper returns a Sweeper that is not started.
func NewSweeper(cleaner *Cleaner, bounds Bounds, log *logrus.Entry) *Sweeper {
	return &Sweeper{
		Interval: boundInterval,
		cleaner:  cleaner,
		bounds:   bounds,
		log:      log,
		pace:     rate.NewLimiter(usersPerSecond, 1),
		grown:    make(map[types.Device]struct{}),
	}
}

// Grown tells of queues that have got messages. It must be called after every commit, and returns at once.
func (s *Sweeper) Grown(wakeups []Wakeup) {
	if s.bounds.Messages == 0 && s.bounds.Bytes == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range wakeups {
		for _, deviceID := range w.DeviceIDs {
			s.grown[types.Device{UserID: w.UserID, DeviceID: deviceID}] = struct{}{}
		}
	}
}

// Start starts the goroutines.
func (s *Sweeper) Start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.running.Go(func() { s.sweepAll(ctx) })
	s.running.Go(func() { s.each(ctx, s.CleanAgain) })
	s.running.Go(func() { s.each(ctx, s.boundGrown) })
}

// Stop ends the goroutines.
func (s *Sweeper) Stop() {
	s.cancel()
	s.running.Wait()
}

// each runs work at each Interval until ctx ends.
func (s *Sweeper) each(ctx context.Context, work func(context.Context)) {
	ticker := time.NewTicker(s.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			work(ctx)
		}
	}
}

func (s *Sweeper) boundGrown(ctx context.Context) {
	if err := s.BoundGrown(ctx); err != nil && ctx.Err() == nil {
		s.log.WithError(err).Warn("to_device: holding queues to their bounds failed, trying again")
	}
}

func (s *Sweeper) sweepAll(ctx context.Context) {
	sweep := time.NewTimer(0)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			next := sweepInterval
			if err := s.Sweep(ctx); errors.Is(err, devices.ErrNotReady) {
				next = notReadyRetry
			} else if err != nil && ctx.Err() == nil {
				next = sweepRetry
				s.log.WithError(err).Warn("to_device: looking for the queues of deleted devices failed, trying again")
			}
			sweep.Reset(next)
		}
	}
}

// Sweep looks at every queue once. It goes on after a failure, and returns the errors.
func (s *Sweeper) Sweep(ctx context.Context) error {
	var failures error
	for after := ""; ; {
		users, err := s.cleaner.Store.Users(ctx, after, usersAtOnce)
		if err != nil || len(users) == 0 {
			return errors.Join(failures, err)
		}
		for _, userID := range users {
			if err = s.pace.Wait(ctx); err != nil {
				return err
			}
			if err = s.sweepUser(ctx, userID); err != nil {
				failures = err // one of them will do: they are alike
			}
		}
		after = users[len(users)-1]
	}
}

func (s *Sweeper) sweepUser(ctx context.Context, userID string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	living, gone, err := s.cleaner.sort(ctx, userID)
	if errors.Is(err, devices.ErrNotLocal) {
		return nil // of a server name that was taken out of the configuration, perhaps for a while
	}
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		if err = s.cleaner.Clean(ctx, userID); err != nil {
			return err
		}
	}
	for _, device := range living {
		if err = s.bound(ctx, device); err != nil {
			return err
		}
	}
	return nil
}

// CleanAgain tries again, once, what failed when devices were deleted.
func (s *Sweeper) CleanAgain(ctx context.Context) {
	for _, userID := range s.cleaner.takeUnclean() {
		if err := s.sweepUser(ctx, userID); err != nil {
			s.cleaner.noteUnclean(userID)
		}
	}
}

// BoundGrown holds the queues that Grown told of to their bounds, once. Those for which it fails it looks at again the next time.
func (s *Sweeper) BoundGrown(ctx context.Context) error {
	s.mu.Lock()
	grown := s.grown
	s.grown = make(map[types.Device]struct{})
	s.mu.Unlock()
	var failures error
	for device := range grown {
		if err := s.bound(ctx, device); err != nil {
			failures = err
			s.Grown([]Wakeup{{UserID: device.UserID, DeviceIDs: []string{device.DeviceID}}})
		}
	}
	return failures
}

// bound drops the oldest messages of a device, as far as there are too many, or they are too old.
func (s *Sweeper) bound(ctx context.Context, device types.Device) error {
	if s.bounds.Age > 0 {
		if err := s.boundAge(ctx, device); err != nil {
			return err
		}
	}
	if s.bounds.Messages == 0 && s.bounds.Bytes == 0 {
		return nil
	}
	excess, err := s.cleaner.Store.Excess(ctx, device, s.bounds.Messages, s.bounds.Bytes)
	if err != nil || excess == 0 {
		return err
	}
	_, err = s.cleaner.drop(ctx, device, excess, trace.QueueFull)
	return err
}

// boundAge spares a queue whose oldest message may be one that was taken over from the host: its age is not known.
func (s *Sweeper) boundAge(ctx context.Context, device types.Device) error {
	oldest, err := s.cleaner.Store.Messages(ctx, device, 0, math.MaxInt64, 1, nil)
	if err != nil || len(oldest) == 0 {
		return err
	}
	latest := time.Now().Add(-s.bounds.Age)
	if stored, known := s.cleaner.StoredAt(oldest[0].Position); !known || stored.After(latest) {
		return nil
	}
	_, err = s.cleaner.drop(ctx, device, types.Position(latest.UnixMicro()), trace.TooOld)
	return err
}
