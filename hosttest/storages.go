package hosttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// storagePromises are about the database, and the homeserver's start and stop.
var storagePromises = []Promise{
	{
		Name:  "the-store-is-kept",
		Text:  "A homeserver that was started again has the messages, the transaction IDs and the positions that it had.",
		check: theStoreIsKept,
	},
	{
		Name:  "a-second-server-is-refused",
		Text:  "A homeserver does not start while another one uses the database: Module.Start returns storage.ErrLocked, and the first one goes on.",
		check: aSecondServerIsRefused,
	},
	{
		Name:  "the-module-is-stopped-first",
		Text:  "The homeserver calls Module.Stop before it closes the database, and ends after that.",
		check: theModuleIsStoppedFirst,
	},
	{
		Name:  "a-stop-loses-nothing",
		Text:  "Nothing that was accepted is lost at a stop, and nothing that was acknowledged comes again.",
		check: aStopLosesNothing,
	},
	{
		Name:  "the-database-is-opened-once",
		Text:  "The module asks for its Store and for the ForeignQueue once.",
		check: theDatabaseIsOpenedOnce,
	},
}

func theStoreIsKept(ctx context.Context, tr *trial) error {
	alice, bob, since, err := tr.pairCaughtUp(ctx)
	if err != nil {
		return err
	}
	txnID := tr.name("txn")
	if err = alice.sendAs(ctx, txnID, to(numbered(0), bob)); err != nil {
		return err
	}
	before := tr.published()
	if err = tr.restart(ctx); err != nil {
		return err
	}
	if after := tr.published(); after < before {
		return fmt.Errorf("the last position goes back from %d to %d", before, after)
	}
	if err = alice.sendAs(ctx, txnID, to(numbered(0), bob)); err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, bob, 1, 2); err != nil {
		return err
	}
	events, _, err := bob.receive(ctx, since, 2)
	if err != nil {
		return err
	}
	return wantNumbers("from a token of before the restart", events, 0, 2)
}

func aSecondServerIsRefused(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	second := tr.setup
	second.Wrap = newSeam().wrap
	if second.ServerName, err = newServerName(); err != nil {
		return err
	}
	if second.Dir, err = tr.kit.TempDir(); err != nil {
		return err
	}
	server, err := tr.kit.Start(ctx, second)
	if err == nil {
		return errors.Join(errors.New("a second homeserver starts on the same database"), server.Stop(ctx))
	}
	if !errors.Is(err, storage.ErrLocked) {
		return fmt.Errorf("starting a second homeserver on the same database: want storage.ErrLocked, got %w", err)
	}
	if err = alice.sendNumbered(ctx, bob, 0, 1); err != nil {
		return fmt.Errorf("after that: %w", err)
	}
	return bob.wantWaiting(ctx, "after that", 1)
}

func theModuleIsStoppedFirst(ctx context.Context, tr *trial) error {
	var mu sync.Mutex
	stopped, closed := false, error(nil)
	store := tr.realStore()
	defer before(tr.seam, func(ctx context.Context, _ releaseCall) error { // the last thing that Module.Stop does
		_, err := store.State(ctx)
		mu.Lock()
		defer mu.Unlock()
		stopped, closed = true, err
		return nil
	})()
	if err := tr.stop(ctx); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	switch {
	case !stopped:
		return errors.New("the homeserver has ended, and the module was not stopped")
	case closed != nil:
		return fmt.Errorf("while the module stops its store answers: %w", closed)
	}
	return tr.start(ctx)
}

func aStopLosesNothing(ctx context.Context, tr *trial) error {
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	const senders, first = 4, 5
	alices := make([]*client, senders)
	for i := range alices {
		if alices[i], err = tr.register(ctx, "alice", "FIRST"); err != nil {
			return err
		}
	}
	if err = alices[0].sendNumbered(ctx, bob, 0, first); err != nil {
		return err
	}
	_, since, err := bob.receive(ctx, "", first)
	if err != nil {
		return err
	}
	accepted := make([][]int, senders)
	sending := make(chan struct{}, senders)
	var all sync.WaitGroup
	for i, alice := range alices {
		all.Go(func() {
			for n := first + i; ; n += senders { // until the homeserver is gone
				if alice.send(ctx, to(numbered(n), bob)) != nil {
					return
				}
				accepted[i] = append(accepted[i], n)
				if len(accepted[i]) == first {
					sending <- struct{}{}
				}
			}
		})
	}
	for range alices {
		if _, err = within(ctx, tr, "messages are accepted", sending); err != nil {
			return err
		}
	}
	if _, err = bob.sync(ctx, since); err != nil { // the acknowledgement
		return err
	}
	err = tr.stop(ctx)
	all.Wait()
	if err == nil {
		err = tr.start(ctx)
	}
	if err != nil {
		return err
	}
	events, _, err := bob.receive(ctx, "", len(slices.Concat(accepted...)))
	if err != nil {
		return fmt.Errorf("what was accepted before and during a stop: %w", err)
	}
	got := numbersOf(events)
	for n := range first {
		if slices.Contains(got, n) {
			return fmt.Errorf("message %d was acknowledged before the stop, and comes again", n)
		}
	}
	for _, n := range slices.Concat(accepted...) {
		if !slices.Contains(got, n) {
			return fmt.Errorf("message %d was accepted before or during the stop, and does not come", n)
		}
	}
	slices.Sort(got)
	if len(slices.Compact(slices.Clone(got))) != len(got) {
		return fmt.Errorf("messages come twice after a stop: %v", got)
	}
	return nil
}

func theDatabaseIsOpenedOnce(ctx context.Context, tr *trial) error {
	if err := tr.restart(ctx); err != nil {
		return err
	}
	if n := len(calls[storeCall](tr.seam)); n != 1 {
		return fmt.Errorf("at one start the module calls Store %d times", n)
	}
	if n := len(calls[foreignQueueCall](tr.seam)); n != 1 {
		return fmt.Errorf("at one start the module calls ForeignQueue %d times", n)
	}
	return nil
}
