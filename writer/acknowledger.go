package writer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// gatherFor is how long acknowledgements are gathered before they are deleted in one statement, unless there are
	// enough for one already.
	gatherFor = 20 * time.Millisecond
	// acknowledgedAtOnce and deletedAtOnce bound one transaction, so that a device with a huge
	// backlog does not hold up the others.
	acknowledgedAtOnce = 512
	deletedAtOnce      = 1000
)

// Acknowledger gathers acknowledgements and deletes what they cover in batches, in a goroutine of
// its own. Start it once; its methods are safe for concurrent use.
type Acknowledger struct {
	// Trace is told of what was deleted; nil means that nobody is. It is set before Start.
	Trace trace.Recorder

	store storage.Store
	log   *logrus.Entry

	mu      sync.Mutex
	pending map[types.Device]types.Position

	work     chan struct{} // holds a token while something is pending
	stopping chan struct{}
	stopped  chan struct{}
	running  context.Context
	giveUp   context.CancelFunc
}

// NewAcknowledger returns an Acknowledger that is not started.
func NewAcknowledger(store storage.Store, log *logrus.Entry) *Acknowledger {
	return &Acknowledger{
		store:    store,
		log:      log,
		pending:  make(map[types.Device]types.Position),
		work:     make(chan struct{}, 1),
		stopping: make(chan struct{}),
		stopped:  make(chan struct{}),
	}
}

// Start starts the goroutine.
func (a *Acknowledger) Start(ctx context.Context) {
	a.running, a.giveUp = context.WithCancel(context.WithoutCancel(ctx))
	go a.run()
}

// Stop deletes what is still pending, unless ctx ends first, and ends the goroutine. What is not deleted
// then is hidden by its device's next since token and deleted at its next acknowledgement.
func (a *Acknowledger) Stop(ctx context.Context) {
	close(a.stopping)
	select {
	case <-a.stopped:
	case <-ctx.Done():
	}
	a.giveUp()
	<-a.stopped
}

// Acknowledge says that the device has everything up to and including through. It returns at
// once; the messages are hidden from now on and deleted soon.
func (a *Acknowledger) Acknowledge(device types.Device, through types.Position) {
	a.mu.Lock()
	if a.pending[device] < through {
		a.pending[device] = through
	}
	a.mu.Unlock()
	a.wake()
}

// Acknowledged returns the position up to which the device's messages wait for their deletion;
// zero if none do.
func (a *Acknowledger) Acknowledged(device types.Device) types.Position {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pending[device]
}

// Pending returns for how many devices acknowledged messages wait for their deletion.
func (a *Acknowledger) Pending() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pending)
}

func (a *Acknowledger) wake() {
	select {
	case a.work <- struct{}{}:
	default:
	}
}

func (a *Acknowledger) run() {
	defer close(a.stopped)
	pause := gatherFor
	for {
		select {
		case <-a.work:
		case <-a.stopping:
			for a.flush() == nil && a.outstanding() {
			}
			return
		}
		if pause > gatherFor || a.Pending() < acknowledgedAtOnce {
			a.sleep(pause)
		}
		if err := a.flush(); err != nil {
			pause = min(2*pause, longestPause)
			a.log.WithError(err).Warn("to_device: deleting acknowledged messages failed, trying again")
		} else {
			pause = gatherFor
		}
		if a.outstanding() {
			a.wake()
		}
	}
}

func (a *Acknowledger) sleep(pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.stopping:
	}
}

func (a *Acknowledger) outstanding() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pending) > 0
}

// flush deletes one batch.
func (a *Acknowledger) flush() error {
	batch := a.take()
	if len(batch) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(a.running, time.Minute)
	defer cancel()
	acknowledged, err := a.store.Acknowledge(ctx, batch, deletedAtOnce)
	if err != nil && !isAway(err) && len(batch) > 1 {
		return a.flushEach(ctx, batch)
	}
	if err != nil {
		return err
	}
	a.forget(batch, acknowledged)
	return nil
}

// flushEach deletes one by one what the database refused to delete together, so that what it
// can't delete stays behind alone.
func (a *Acknowledger) flushEach(ctx context.Context, batch []storage.Acknowledgement) error {
	var errs []error
	for i := range batch {
		acknowledged, err := a.store.Acknowledge(ctx, batch[i:i+1], deletedAtOnce)
		if err == nil {
			a.forget(batch[i:i+1], acknowledged)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *Acknowledger) take() []storage.Acknowledgement {
	a.mu.Lock()
	defer a.mu.Unlock()
	batch := make([]storage.Acknowledgement, 0, min(len(a.pending), acknowledgedAtOnce))
	for device, through := range a.pending {
		if len(batch) == acknowledgedAtOnce {
			break
		}
		batch = append(batch, storage.Acknowledgement{Device: device, Through: through})
	}
	return batch
}

// forget drops what is deleted, unless its device acknowledged more in the meantime.
func (a *Acknowledger) forget(batch []storage.Acknowledgement, acknowledged []storage.Acknowledged) {
	a.tell(acknowledged)
	more := make(map[types.Device]struct{}, len(acknowledged))
	for _, some := range acknowledged {
		if some.Unfinished {
			more[some.Device] = struct{}{}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, done := range batch {
		if _, again := more[done.Device]; !again && a.pending[done.Device] == done.Through {
			delete(a.pending, done.Device)
		}
	}
}

func (a *Acknowledger) tell(acknowledged []storage.Acknowledged) {
	if a.Trace == nil || len(acknowledged) == 0 {
		return
	}
	records := make([]trace.Record, 0, len(acknowledged))
	for _, some := range acknowledged {
		records = append(records, trace.Record{
			Step: trace.Acknowledged, Recipient: some.Device, Position: some.Through, Count: some.Deleted,
		})
	}
	a.Trace.Record(records...)
}
