// Package handover takes over what waits in the host's own queue when the module starts, and keeps the way back open: while
// the module runs, the host's own positions stay ahead of every position that clients have in their tokens.
package handover

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// ahead is how far beyond the present and beyond the last position the host's own are kept.
	ahead = types.Position(time.Hour / time.Microsecond)
	// raiseInterval leaves room for many failures within ahead, and little for a clock that leaps beyond it.
	raiseInterval = time.Minute
	// stopTimeout leaves the rest of a stop its time where the database does not answer.
	stopTimeout = time.Second
	// reportInterval is how often the log tells how far an import is.
	reportInterval = 5 * time.Second
)

// Options are what a Handover works with. All are required, but for those that name a default.
type Options struct {
	Store storage.Store
	Queue storage.ForeignQueue
	Log   *logrus.Entry
	// Last returns the last position that may have been handed out. It is called from Start on.
	Last func() types.Position
	// Now is the clock that positions follow; nil means time.Now.
	Now func() time.Time
	// Tick returns when to look next, after the pause given; nil means time.After.
	Tick func(time.Duration) <-chan time.Time
}

// Handover stands between the store and the host's own queue. Call Prepare once, then Start, then Stop.
type Handover struct {
	Options
	cancel  context.CancelFunc
	stopped chan struct{}
}

// New returns a Handover that is not started.
func New(options Options) *Handover {
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Tick == nil {
		options.Tick = time.After
	}
	return &Handover{Options: options, stopped: make(chan struct{})}
}

// Prepare moves what waits in the host's own queue into the store. The caller holds the lock on the store,
// and has not claimed it yet. The position that it returns is the smallest that the claim may begin at: at least as large as
// every position that the host handed out without the module.
func (h *Handover) Prepare(ctx context.Context) (types.Position, error) {
	if err := h.Queue.Prepare(ctx); err != nil {
		return 0, fmt.Errorf("preparing the host's queue: %w", err)
	}
	state, err := h.Store.State(ctx)
	if err != nil {
		return 0, err
	}
	given, err := h.given(ctx)
	if err != nil {
		return 0, err
	}
	if given > storage.LargestForeign {
		return 0, fmt.Errorf("the host's sequence of send-to-device messages stands at %d, where it can't have come by itself: "+
			"set it back to what the host's messages and the clients' since tokens have", given)
	}
	if state.Last > 0 && given > state.Last {
		if err = h.warn(ctx); err != nil {
			return 0, err
		}
	}
	imported, err := h.Store.Import(ctx, h.Queue, h.report())
	if err != nil {
		return 0, err
	}
	if imported.Messages > 0 {
		h.Log.WithField("messages", imported.Messages).Info("to_device: took over the messages that waited in the host's queue")
	}
	if imported.Unreadable > 0 {
		h.Log.WithField("rows", imported.Unreadable).Error("to_device: left rows of the host's queue where they are: they hold no message for a device, " +
			"or one under a position that the device has another message under")
	}
	return max(given, imported.Through), nil
}

// warn tells of messages of the module's that waited while the host ran without it.
func (h *Handover) warn(ctx context.Context) error {
	held, err := h.Store.Held(ctx)
	if err == nil && held > 0 {
		h.Log.WithField("messages", held).Warn("to_device: the host ran without the module while messages of the module's waited; " +
			"clients that went on in the meantime may not get them, or once more (dendrite-todevice to-device export spares them that)")
	}
	return err
}

func (h *Handover) given(ctx context.Context) (given types.Position, err error) {
	err = h.Queue.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		given, err = h.Queue.Given(ctx, tx)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("asking for the host's last position: %w", err)
	}
	return given, nil
}

// raise keeps the host's positions ahead of the last one, and of the present.
func (h *Handover) raise(ctx context.Context, last types.Position) error {
	atLeast := max(last, types.Position(h.Now().UnixMicro())) + ahead
	err := h.Queue.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := h.Queue.Raise(ctx, tx, atLeast)
		return err
	})
	if err != nil {
		return fmt.Errorf("raising the host's own positions: %w", err)
	}
	return nil
}

// report returns a Progress that tells the log now and then.
func (h *Handover) report() storage.Progress {
	reported := h.Now()
	return func(done, total int) {
		if now := h.Now(); now.Sub(reported) >= reportInterval {
			reported = now
			h.Log.WithFields(logrus.Fields{"done": done, "total": total}).
				Info("to_device: taking over the messages that wait in the host's queue")
		}
	}
}

// Start puts the host's positions ahead and starts the goroutine that keeps them there. It comes after the store was claimed:
// until then they tell what the host handed out. It comes before the first position is handed out.
func (h *Handover) Start(ctx context.Context) error {
	if err := h.raise(ctx, h.Last()); err != nil {
		return err
	}
	ctx, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(h.stopped)
		for {
			select {
			case <-h.Tick(raiseInterval):
			case <-ctx.Done():
				return
			}
			h.raiseOnce(ctx, raiseInterval)
		}
	}()
	return nil
}

func (h *Handover) raiseOnce(ctx context.Context, timeout time.Duration) {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := h.raise(bounded, h.Last()); err != nil && ctx.Err() == nil {
		h.Log.WithError(err).Warn("to_device: keeping the host's own positions ahead failed")
	}
}

// Stop ends the goroutine and puts the host's positions ahead once more, within a second at most: the clock may have leapt since
// they were last. It does nothing if Start was not called.
func (h *Handover) Stop(ctx context.Context) {
	if h.cancel == nil {
		return
	}
	h.cancel()
	<-h.stopped
	h.raiseOnce(ctx, stopTimeout)
}
