package writer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// CleanerOptions are what a Cleaner works with. All are required, but for Trace.
type CleanerOptions struct {
	Store     storage.Store
	Source    devices.Source
	Directory *devices.Directory
	Writer    *Writer
	// Virtual reports whether a device sends although the Source does not list it: its transaction records are left to
	// expire. Nil means that none does.
	Virtual func(deviceID string) bool
	// Timeout bounds the wait for other changes of the user's devices, the clean-up before a creation, and that after a
	// deletion, which goes on when whoever asked for it goes away.
	Timeout time.Duration
	// StoredAt returns when a message was stored, or false if that is not known.
	StoredAt func(types.Position) (time.Time, bool)
	// Trace is told of what is deleted; nil means that nobody is.
	Trace trace.Recorder
	Log   *logrus.Entry
}

// Cleaner keeps a device's queue and transaction records from outliving it. Its methods are safe for concurrent use.
type Cleaner struct {
	CleanerOptions

	mu       sync.Mutex
	changing map[string]*turn    // the users whose devices are being changed
	unclean  map[string]struct{} // the users of whom deleted devices may have left something
}

// turn lets one change of a user's devices through at a time.
type turn struct {
	taken  chan struct{}
	wanted int
}

// NewCleaner returns a Cleaner.
func NewCleaner(options CleanerOptions) *Cleaner {
	if options.Virtual == nil {
		options.Virtual = func(string) bool { return false }
	}
	return &Cleaner{CleanerOptions: options, changing: make(map[string]*turn), unclean: make(map[string]struct{})}
}

// CreateDevice has the host create a device. Whatever is left of an earlier device of the same ID is gone
// before: where that can't be done, create is not called and the error returned. An empty device ID is one that the
// host is to choose, of which nothing can be left. A device that exists keeps what it has.
func (c *Cleaner) CreateDevice(ctx context.Context, userID, deviceID string, create func() error) error {
	if deviceID == "" {
		return c.Directory.Change(userID, create)
	}
	waiting, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	unlock, err := c.lock(waiting, userID)
	if err != nil {
		return err
	}
	defer unlock()
	if err = c.clean(waiting, userID); err != nil {
		return err
	}
	return c.Directory.Change(userID, create)
}

// DeleteDevices has the host delete devices of a user. When it returns nil the queues and the transaction records of
// every device that does not exist are gone, and nothing that is on its way will reach them, or be stored for a request of
// theirs. After an error of the clean-up the devices are deleted all the same; what is left goes before a device of the same
// ID is created, or soon, by a Sweeper. The same holds for a removal that failed, and may be carried out all the same.
func (c *Cleaner) DeleteDevices(ctx context.Context, userID string, remove func() error) error {
	waiting, cancelWait := context.WithTimeout(ctx, c.Timeout)
	defer cancelWait()
	unlock, err := c.lock(waiting, userID)
	if err != nil {
		return err
	}
	defer unlock()
	removal := c.Directory.Change(userID, remove)
	c.Directory.Deleted(userID)
	// A removal that failed may have removed some.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Timeout)
	defer cancel()
	if err = c.clean(ctx, userID); err != nil {
		c.Log.WithError(err).WithField("user_id", userID).Error("to_device: deleting the queues of deleted devices failed, it will be tried again")
		err = fmt.Errorf("deleting the queues of deleted devices: %w", err)
	}
	if err = errors.Join(removal, err); err != nil {
		c.noteUnclean(userID) // a removal whose answer was lost may be carried out later than the clean-up
	}
	return err
}

// Clean deletes what is kept for devices of a user that do not exist, and has the Directory ask the host for the user's devices
// again.
func (c *Cleaner) Clean(ctx context.Context, userID string) error {
	unlock, err := c.lock(ctx, userID)
	if err != nil {
		return err
	}
	defer unlock()
	c.Directory.Changed(userID) // what is kept may have come through what it still knows
	return c.clean(ctx, userID)
}

func (c *Cleaner) noteUnclean(userID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unclean[userID] = struct{}{}
}

func (c *Cleaner) takeUnclean() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	users := slices.Collect(maps.Keys(c.unclean))
	clear(c.unclean)
	return users
}

// lock keeps devices of the user from being created or deleted between the host's answer, which of them exist, and what
// follows from it.
func (c *Cleaner) lock(ctx context.Context, userID string) (unlock func(), err error) {
	c.mu.Lock()
	own := c.changing[userID]
	if own == nil {
		own = &turn{taken: make(chan struct{}, 1)}
		c.changing[userID] = own
	}
	own.wanted++
	c.mu.Unlock()
	leave := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if own.wanted--; own.wanted == 0 {
			delete(c.changing, userID)
		}
	}
	select {
	case own.taken <- struct{}{}:
		return func() { <-own.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("%w: the devices of the user are being changed: %w", ErrUnavailable, ctx.Err())
	}
}

// clean is Clean for whoever has the lock.
func (c *Cleaner) clean(ctx context.Context, userID string) error {
	// Every submission that was resolved before the last change is committed now, or will be found stale.
	if err := c.Writer.Submit(ctx, Submission{}); err != nil {
		return err
	}
	_, gone, err := c.sort(ctx, userID)
	if err != nil {
		return err
	}
	for _, device := range gone {
		if _, err = c.drop(ctx, device, math.MaxInt64, trace.DeviceDeleted); err != nil {
			return err
		}
		if c.Virtual(device.DeviceID) {
			continue
		}
		if err = c.Store.Forget(ctx, device); err != nil {
			return err
		}
	}
	return nil
}

// sort returns the devices of a user for which anything is kept: those that exist, and those that do not.
func (c *Cleaner) sort(ctx context.Context, userID string) (living, gone []types.Device, err error) {
	kept, err := c.Store.Devices(ctx, userID)
	if err != nil || len(kept) == 0 {
		return nil, nil, err
	}
	exist, err := c.Source.UserDevices(ctx, userID)
	if err != nil {
		return nil, nil, err
	}
	for _, deviceID := range kept {
		device := types.Device{UserID: userID, DeviceID: deviceID}
		if slices.Contains(exist, deviceID) {
			living = append(living, device)
		} else {
			gone = append(gone, device)
		}
	}
	return living, gone, nil
}

// drop deletes a device's messages up to and including through, and tells why.
func (c *Cleaner) drop(ctx context.Context, device types.Device, through types.Position, reason trace.Reason) (int, error) {
	deleted, err := c.Store.Purge(ctx, device, through)
	if deleted > 0 && c.Trace != nil {
		c.Trace.Record(trace.Record{
			Step: trace.Dropped, Reason: reason, Recipient: device, Position: min(through, c.Writer.Published()), Count: deleted,
		})
	}
	return deleted, err
}

// Purge deletes a device's messages up to and including through, whether the device exists or not, and returns
// how many there were.
func (c *Cleaner) Purge(ctx context.Context, device types.Device, through types.Position) (int, error) {
	return c.drop(ctx, device, through, trace.Purged)
}
