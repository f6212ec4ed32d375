// Package writer stores messages: one goroutine takes what is waiting, allocates positions,
// commits one transaction, then makes the positions visible and wakes the devices. It is the
// only allocator of positions.
package writer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// queueLength and queueBytes bound what waits for a commit. Beyond them Submit waits.
	queueLength = 1024
	queueBytes  = 64 << 20
	// batchBytes ends the gathering of a batch, so that a commit stays short.
	batchBytes = 8 << 20
	// lockCheckInterval is how soon an idle server notices that it lost the lock on the store.
	lockCheckInterval = 10 * time.Second
	// lockPatience is how long a start waits for the lock of a server that has just ended.
	lockPatience = time.Second
)

// Wakeup names the devices of one user that have new messages.
type Wakeup struct {
	UserID    string
	DeviceIDs []string
}

// Options are what a Writer works with. All are required, but for those that name a default.
type Options struct {
	Store storage.Store
	// Prepare is called by Start once it has the lock on the store and before it claims the store. The first
	// position is larger than what it returns. Nil means that there is nothing to prepare.
	Prepare func(ctx context.Context) (types.Position, error)
	// Committed is called by the writer's goroutine with each batch that is known to be stored, in their order and
	// before any of its positions can be seen. It must not block. Nil means that nobody is told.
	Committed func(storage.Batch)
	// Wake is called by the writer's goroutine after each commit with messages, once they can be
	// read: every message with a position up to and including the one given is committed. It must not block.
	Wake func(position types.Position, devices []Wakeup)
	// Outgoing is called by the writer's goroutine after each commit with EDUs, in the order of their
	// positions. It must not block. Nil means that nobody is told.
	Outgoing func([]storage.EDU)
	Log      *logrus.Entry
	// Observe is told of each commit with messages or transactions, and each time that the database fails at what goes
	// before one or decides one; nil means nobody is.
	Observe func(Commit)
	// Trace is told of each message that is stored or was before, ahead of Wake and Outgoing; nil means that nobody is.
	Trace trace.Recorder
	// Now is the clock that positions follow; nil means time.Now.
	Now func() time.Time
	// AttemptTimeout bounds one attempt of a commit. The default is a minute.
	AttemptTimeout time.Duration
}

// Commit describes one attempt to commit, for metrics.
type Commit struct {
	Requests int
	Copies   int
	EDUs     int
	Duration time.Duration
	Err      error
}

// Writer is the group commit. Start it once; its methods are safe for concurrent use.
type Writer struct {
	Options
	id        string
	queue     chan *request
	room      *semaphore.Weighted
	published atomic.Int64

	// Of the writer's goroutine alone.
	lock      storage.Lock
	previous  types.Position // what the position record holds
	allocated types.Position // the last position handed to a commit, whatever became of it
	notes     []trace.Record // of the present batch

	startStop sync.Mutex
	stopping  chan struct{} // closed: take no more requests
	giveUp    context.CancelFunc
	running   context.Context // ends when Stop gives up waiting for the database
	stopped   chan struct{}   // closed once the goroutine has ended
}

// New returns a Writer that is not started.
func New(options Options) *Writer {
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Prepare == nil {
		options.Prepare = func(context.Context) (types.Position, error) { return 0, nil }
	}
	if options.Committed == nil {
		options.Committed = func(storage.Batch) {}
	}
	if options.Outgoing == nil {
		options.Outgoing = func([]storage.EDU) {}
	}
	if options.Observe == nil {
		options.Observe = func(Commit) {}
	}
	if options.AttemptTimeout == 0 {
		options.AttemptTimeout = time.Minute
	}
	return &Writer{
		Options:  options,
		id:       uuid.NewString(),
		queue:    make(chan *request, queueLength),
		room:     semaphore.NewWeighted(queueBytes),
		stopping: make(chan struct{}),
		stopped:  make(chan struct{}),
	}
}

// Start takes the lock on the store and the position record, then starts the writer's goroutine.
// It returns storage.ErrLocked if another process writes to the store.
//
// The first position is at least the present time, so that it stands after every token that was
// handed out before a database was restored from a backup.
func (w *Writer) Start(ctx context.Context) error {
	w.startStop.Lock()
	defer w.startStop.Unlock()
	lock, err := w.takeLock(ctx)
	if err != nil {
		return err
	}
	atLeast, err := w.Prepare(ctx)
	if err != nil {
		return errors.Join(err, lock.Release())
	}
	last, err := w.Store.Claim(ctx, w.id, max(w.now(), atLeast))
	if err != nil {
		return errors.Join(err, lock.Release())
	}
	w.lock, w.previous, w.allocated = lock, last, last
	w.published.Store(int64(last))
	w.running, w.giveUp = context.WithCancel(context.WithoutCancel(ctx))
	go w.run()
	return nil
}

// takeLock waits for a moment for the lock: a database may take some milliseconds to notice that a server was killed.
func (w *Writer) takeLock(ctx context.Context) (storage.Lock, error) {
	for end := time.Now().Add(lockPatience); ; {
		lock, err := w.Store.Lock(ctx)
		if !errors.Is(err, storage.ErrLocked) || time.Now().After(end) {
			return lock, err
		}
		select {
		case <-time.After(lockPatience / 10):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// Stop ends the writer: what Submit has taken is still stored, unless ctx ends first. It
// releases the lock on the store. It does nothing if the writer was not started or has stopped.
func (w *Writer) Stop(ctx context.Context) error {
	w.startStop.Lock()
	defer w.startStop.Unlock()
	if w.lock == nil {
		return nil
	}
	close(w.stopping)
	select {
	case <-w.stopped:
	case <-ctx.Done():
		w.giveUp()
		<-w.stopped
	}
	w.giveUp()
	err := w.lock.Release()
	w.lock = nil
	return err
}

// Published returns the last visible position: every message up to and including it is
// committed, and none will be added at or below it.
func (w *Writer) Published() types.Position {
	return types.Position(w.published.Load())
}

// Queued returns how many submissions wait for a commit that has not begun.
func (w *Writer) Queued() int { return len(w.queue) }

// Submit returns nil once the submission is durably stored, or was before. It waits while the queue
// is full and while the database is away, until ctx ends: then it returns ErrUnavailable, and
// the submission may or may not be stored. Any other error means that nothing was stored; it wraps storage.ErrTransient
// where the same submission may be stored later.
func (w *Writer) Submit(ctx context.Context, s Submission) error {
	r := &request{Submission: s, ctx: ctx, weight: min(s.weight(), queueBytes), done: make(chan struct{})}
	if err := w.room.Acquire(ctx, r.weight); err != nil {
		return fmt.Errorf("%w: too many messages are waiting to be stored: %w", ErrUnavailable, err)
	}
	select {
	case w.queue <- r:
	case <-ctx.Done():
		w.room.Release(r.weight)
		return fmt.Errorf("%w: too many messages are waiting to be stored: %w", ErrUnavailable, ctx.Err())
	case <-w.stopping:
		w.room.Release(r.weight)
		return ErrStopped
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	case <-w.stopped:
	}
	select {
	case <-r.done:
		return r.err
	default: // queued after the goroutine looked for the last time
		return ErrStopped
	}
}

func (w *Writer) run() {
	defer close(w.stopped)
	check := time.NewTicker(lockCheckInterval)
	defer check.Stop()
	for {
		select {
		case r := <-w.queue:
			w.process(w.gather(r))
		case <-check.C:
			w.checkLock()
		case <-w.stopping:
			for {
				select {
				case r := <-w.queue:
					w.process(w.gather(r))
				default:
					return
				}
			}
		}
	}
}

// gather takes what waits behind first without waiting for more: while one batch is committed,
// the next one gathers by itself.
func (w *Writer) gather(first *request) []*request {
	batch, bytes := []*request{first}, first.weight
	for bytes < batchBytes {
		select {
		case r := <-w.queue:
			batch, bytes = append(batch, r), bytes+r.weight
		default:
			return batch
		}
	}
	return batch
}

func (w *Writer) checkLock() {
	ctx, cancel := context.WithTimeout(w.running, w.AttemptTimeout)
	defer cancel()
	if err := w.lock.Check(ctx); err != nil {
		w.Log.WithError(err).Warn("to_device: the lock on the database is not held at the moment")
	}
}

func (w *Writer) now() types.Position {
	return types.Position(w.Now().UnixMicro())
}

// latest returns the present time, or the latest that is known of where the clock was set back since, or was behind at the start of a machine: what
// is to be remembered for a time must not be forgotten as soon as the clock is right again.
func (w *Writer) latest() time.Time {
	now, known := w.Now(), w.allocated.Time()
	if known.After(now) {
		return known
	}
	return now
}

// nextPositions returns the first of n consecutive positions.
func (w *Writer) nextPositions(n int) types.Position {
	first := max(w.allocated+1, w.now())
	w.allocated = first + types.Position(n) - 1
	return first
}
