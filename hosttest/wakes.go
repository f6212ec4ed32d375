package hosttest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func waitingDevicesAreWoken(ctx context.Context, tr *trial) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	second, err := bob.login(ctx, "SECOND")
	if err != nil {
		return err
	}
	tokens, polls := make(map[*client]string), make(map[*client]*poll)
	wait := func(c *client) (err error) {
		polls[c], err = c.waitAt(ctx, tokens[c])
		return err
	}
	for _, c := range []*client{bob, second} {
		if tokens[c], err = c.caughtUp(ctx); err != nil {
			return err
		}
		if err = wait(c); err != nil {
			return err
		}
	}
	const rounds = 3 // in case that one came before the homeserver was at the /sync
	for n := range rounds {
		if err = alice.send(ctx, to(numbered(n), bob)); err != nil {
			return err
		}
		res, err := polls[bob].response(ctx)
		if err != nil {
			return err
		}
		if err = wantNumbers("a /sync that waited", res.events(), n, n+1); err != nil {
			return err
		}
		tokens[bob] = res.NextBatch
		if err = wait(bob); err != nil {
			return err
		}
	}
	if err = polls[second].waiting(); err != nil {
		return fmt.Errorf("a /sync of a device for which there was no message: %w", err)
	}
	if err = alice.send(ctx, to(numbered(rounds), second)); err != nil {
		return err
	}
	res, err := polls[second].response(ctx)
	if err != nil {
		return err
	}
	if err = wantNumbers("a /sync that waited on", res.events(), rounds, rounds+1); err != nil {
		return err
	}
	if err = allAreWoken(ctx, tr); err != nil {
		return err
	}
	return wakesWhileReading(ctx, tr)
}

// allAreWoken has one call name several devices of several users.
func allAreWoken(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	var all []*client
	for _, first := range []*client{alice, bob} {
		second, err := first.login(ctx, "SECOND")
		if err != nil {
			return err
		}
		all = append(all, first, second)
	}
	polls, err := waitAll(ctx, all...)
	if err != nil {
		return err
	}
	if err = alice.send(ctx, to(numbered(0), all...)); err != nil {
		return err
	}
	for i, p := range polls {
		res, err := p.response(ctx)
		if err != nil {
			return fmt.Errorf("one message for %d devices of two users: %s of %s: %w", len(all), all[i].DeviceID, all[i].UserID, err)
		}
		if err = wantNumbers("a /sync that waited for what came for several", res.events(), 0, 1); err != nil {
			return err
		}
	}
	return nil
}

func wakingDoesNotBlock(ctx context.Context, tr *trial) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	clients, err := tr.registerEach(ctx, "alice", "bob", "carol")
	if err != nil {
		return err
	}
	alice, bob, carol := clients[0], clients[1], clients[2]
	polls, err := waitAll(ctx, bob, carol)
	if err != nil {
		return err
	}
	reading, readOn := make(chan struct{}), make(chan struct{})
	tell := sync.OnceFunc(func() { close(reading) })
	goOn := sync.OnceFunc(func() { close(readOn) })
	defer goOn()
	defer before(tr.seam, func(ctx context.Context, call messagesCall) error {
		if call.Device != bob.Device {
			return nil
		}
		tell()
		select {
		case <-readOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})()
	if err = alice.send(ctx, to(largeNumbered(0), bob)); err != nil {
		return err
	}
	if _, err = within(ctx, tr, "the queue of a device that was woken is read", reading); err != nil {
		return err
	}
	if err = alice.send(ctx, to(numbered(0), carol)); err != nil {
		return fmt.Errorf("while another device's queue is being read: %w", err)
	}
	for i, name := range []string{"the /sync of another device, while one queue is being read", "the /sync whose queue was being read"} {
		res, err := polls[1-i].response(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err = wantNumbers(name, res.events(), 0, 1); err != nil {
			return err
		}
		goOn()
	}
	return nil
}

func wakeUpsComeInOrder(ctx context.Context, tr *trial) error {
	recipients, err := tr.registerEach(ctx, "bob", "carol")
	if err != nil {
		return err
	}
	const (
		senders, each = 4, 8
		// overlap is how long each call takes, so that one which does not wait for it begins in between.
		overlap = 20 * time.Millisecond
	)
	alices := make([]*client, senders)
	for i := range alices {
		if alices[i], err = tr.register(ctx, "alice", "FIRST"); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var faults []error
	var last types.Position
	newest := make(map[types.Device]types.Position)
	underWay := 0
	module, store := tr.server().Module, tr.realStore()
	note := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	began := before(tr.seam, func(_ context.Context, call wakeDevicesCall) error {
		defer time.Sleep(overlap)
		mu.Lock()
		defer mu.Unlock()
		if underWay++; underWay > 1 {
			note("WakeDevices is called while another call is under way")
		}
		if call.Position <= last {
			note("WakeDevices is called with %d after %d", call.Position, last)
		}
		last = call.Position
		if published := module.LatestPosition(); published < call.Position {
			note("WakeDevices is called with %d while the last position is %d", call.Position, published)
		}
		for device := range woken(call) {
			found, err := store.Messages(ctx, device, newest[device], call.Position, math.MaxInt32, nil)
			if err != nil || len(found) == 0 {
				note("WakeDevices is called for %s %s, for whom there is nothing new up to %d (%v)", device.UserID, device.DeviceID, call.Position, err)
				continue
			}
			newest[device] = found[len(found)-1].Position
		}
		return nil
	})
	defer began()
	ended := after(tr.seam, func(_ context.Context, _ wakeDevicesCall, err error) error {
		mu.Lock()
		defer mu.Unlock()
		underWay--
		return err
	})
	defer ended()
	err = together(senders, func(i int) error {
		for n := range each {
			if err := alices[i].send(ctx, to(numbered(n), recipients...)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range recipients {
		queue, err := tr.storedFor(ctx, c.Device, senders*each)
		if err != nil {
			return err
		}
		end := queue[len(queue)-1].Position
		err = tr.await(ctx, "all messages were announced", func() (bool, any, error) {
			mu.Lock()
			defer mu.Unlock()
			return last >= end || len(faults) > 0, last, nil
		})
		if err != nil {
			return err
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(faults...)
}

// woken returns the devices that a call names, each of them once.
func woken(call wakeDevicesCall) map[types.Device]struct{} {
	named := make(map[types.Device]struct{})
	for _, w := range call.Wakeups {
		for _, deviceID := range w.DeviceIDs {
			named[types.Device{UserID: w.UserID, DeviceID: deviceID}] = struct{}{}
		}
	}
	return named
}
