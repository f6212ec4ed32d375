package hosttest

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// holdReads has what the store answers for a device's queue reach the module only once goOn was called. The first answer that is held back
// closes the channel.
func (tr *trial) holdReads(device types.Device) (held <-chan struct{}, goOn func()) {
	reading, readOn := make(chan struct{}), make(chan struct{})
	tell := sync.OnceFunc(func() { close(reading) })
	takeAway := after(tr.seam, func(ctx context.Context, call messagesCall, err error) error {
		if call.Device != device {
			return err
		}
		tell()
		select {
		case <-readOn:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return reading, sync.OnceFunc(func() {
		takeAway()
		close(readOn)
	})
}

// meanwhile begins a /sync of a device, and does something once its queue was read and nothing found, which the homeserver does not know yet.
func (tr *trial) meanwhile(ctx context.Context, alice, bob *client, since string, timeout time.Duration, do func() error) (*poll, error) {
	err := tr.restart(ctx) // by which the module keeps no queue in memory
	if err != nil {
		return nil, err
	}
	if err = alice.send(ctx, to(numbered(0), alice)); err != nil { // a homeserver need not read for its newest token
		return nil, err
	}
	found, goOn := tr.holdReads(bob.Device)
	defer goOn()
	p := bob.pollFor(ctx, since, timeout)
	if _, err = within(ctx, tr, "the queue of a device is read for its /sync", found); err != nil {
		return nil, err
	}
	return p, do()
}

// sendAndWake sends the message 0 to a device, and returns once the homeserver was told to wake it.
func (tr *trial) sendAndWake(ctx context.Context, alice, bob *client) error {
	woke := make(chan struct{})
	tell := sync.OnceFunc(func() { close(woke) })
	defer after(tr.seam, func(_ context.Context, call wakeDevicesCall, err error) error {
		if _, named := woken(call)[bob.Device]; named {
			tell()
		}
		return err
	})()
	if err := alice.send(ctx, to(numbered(0), bob)); err != nil {
		return err
	}
	_, err := within(ctx, tr, "WakeDevices returns", woke)
	return err
}

// wakesWhileReading has a device be woken after its queue was read, and before the homeserver knows that it is to wait.
func wakesWhileReading(ctx context.Context, tr *trial) error {
	alice, bob, since, err := tr.pairCaughtUp(ctx)
	if err != nil {
		return err
	}
	p, err := tr.meanwhile(ctx, alice, bob, since, 2*tr.kit.Patience, func() error { return tr.sendAndWake(ctx, alice, bob) })
	if err != nil {
		return err
	}
	const what = "a /sync whose device was woken after its queue had been read"
	res, err := p.response(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return wantNumbers(what, res.events(), 0, 1)
}

// positionsAreOfTheRead has a message come after the queue was read, and before the homeserver answers that there is none.
func positionsAreOfTheRead(ctx context.Context, tr *trial) error {
	for _, hasSince := range []bool{true, false} {
		alice, bob, since, err := tr.pairCaughtUp(ctx)
		if err != nil {
			return err
		}
		if !hasSince {
			since = ""
		}
		p, err := tr.meanwhile(ctx, alice, bob, since, 0, func() error { return tr.sendAndWake(ctx, alice, bob) })
		if err != nil {
			return err
		}
		res, err := p.response(ctx)
		if err != nil {
			return err
		}
		if len(res.events()) > 0 { // it has read again
			continue
		}
		if res, err = bob.next(ctx, res.NextBatch); err != nil {
			return err
		}
		if err = wantNumbers("after a response without messages, what came once the queue had been read for it", res.events(), 0, 1); err != nil {
			return err
		}
	}
	return nil
}

// deletionsOvertakeSyncs deletes a device whose queue was read and is not handed over yet: first one with a message, then one without, whose ID a new
// device takes, for which a message comes.
func deletionsOvertakeSyncs(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	gone, other, err := tr.leaving(ctx, alice)
	if err != nil {
		return err
	}
	if err = tr.restart(ctx); err != nil { // by which the module keeps no queue in memory
		return err
	}
	read, goOn := tr.holdReads(gone.Device)
	defer goOn()
	p := gone.pollFor(ctx, "", 0)
	if _, err = within(ctx, tr, "the queue of a device is read for its /sync", read); err != nil {
		return err
	}
	if err = gone.deletedBy(ctx, other); err != nil {
		return err
	}
	goOn()
	if err = p.want401(ctx, "a /sync whose device was deleted while its queue was read"); err != nil {
		return err
	}
	n, err := tr.handedOver(ctx, gone.Device)
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("after a /sync whose device was deleted while its queue was read: Module.HandedOver was told of %d messages", n)
	}

	again, err := gone.loginAgain(ctx)
	if err != nil {
		return err
	}
	since, err := again.caughtUp(ctx)
	if err != nil {
		return err
	}
	var next *client
	p, err = tr.meanwhile(ctx, alice, again, since, 2*tr.kit.Patience, func() (err error) {
		if err = again.deletedBy(ctx, other); err != nil {
			return err
		}
		if next, err = again.loginAgain(ctx); err != nil {
			return err
		}
		return tr.sendAndWake(ctx, alice, next)
	})
	if err != nil {
		return err
	}
	if err = p.want401(ctx, "a /sync whose device was deleted, with something waiting for a new device of the same ID"); err != nil {
		return err
	}
	return next.wantWaiting(ctx, "the new device", 1)
}

// deletedBy has another device of the same user delete the device.
func (c *client) deletedBy(ctx context.Context, other *client) error {
	a, err := c.deleteFrom(ctx, other)
	if err == nil {
		err = a.want(http.StatusOK, "the deletion of a device")
	}
	return err
}

// want401 waits for the answer, which is to be 401.
func (p *poll) want401(ctx context.Context, what string) error {
	a, err := p.answered(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return a.want(http.StatusUnauthorized, what)
}
