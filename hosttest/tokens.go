package hosttest

import (
	"context"
	"fmt"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func positionsAreTheModules(ctx context.Context, tr *trial) error {
	if err := positionsAreOfTheRead(ctx, tr); err != nil {
		return err
	}
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	const sent = 3 * batch
	if err = alice.sendNumbered(ctx, bob, 0, sent); err != nil {
		return err
	}
	queue, err := tr.storedFor(ctx, bob.Device, sent)
	if err != nil {
		return err
	}
	since, earlier := "", make(map[types.Position]bool)
	for end := batch; end < sent; end += batch { // while more wait, the position is that of the last message
		res, err := bob.next(ctx, since)
		if err != nil {
			return err
		}
		since = res.NextBatch
		tr.forget()
		if _, err = bob.sync(ctx, since); err != nil {
			return err
		}
		want := queue[end-1].Position
		err = tr.await(ctx, fmt.Sprintf("position %d is acknowledged", want), func() (bool, any, error) {
			for _, c := range calls[acknowledgeCall](tr.seam) {
				for _, a := range c.Acknowledgements {
					switch {
					case a.Device != bob.Device || earlier[a.Through]: // one of those before, which came again
					case a.Through != want:
						return false, nil, fmt.Errorf("the token of messages up to %d comes back as %d", want, a.Through)
					default:
						return true, nil, nil
					}
				}
			}
			return false, "none", nil
		})
		if err != nil {
			return err
		}
		earlier[want] = true
	}
	return nil
}

// tokensAheadHideNothing has the homeserver hand out a token once as it was before its database was restored from a backup: its position is
// an hour ahead of the store.
func tokensAheadHideNothing(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	tr.leadBy(types.Position(time.Hour.Microseconds()))
	defer tr.leadBy(0)
	if err = tr.restart(ctx); err != nil {
		return err
	}
	ahead, err := bob.sync(ctx, "")
	if err != nil {
		return err
	}
	tr.leadBy(0)
	if err = tr.restart(ctx); err != nil {
		return err
	}
	const sent = 2
	if err = alice.sendNumbered(ctx, bob, 0, sent); err != nil {
		return err
	}
	since := ahead.NextBatch
	for range 2 { // the second finds that the first has deleted nothing
		res, err := bob.next(ctx, since)
		if err != nil {
			return err
		}
		if err = wantNumbers("from a token that is ahead of the store", res.events(), 0, sent); err != nil {
			return err
		}
	}
	events, since, err := bob.receive(ctx, since, sent)
	if err != nil {
		return err
	}
	if err = wantNumbers("from a token that is ahead of the store", events, 0, sent); err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, bob, sent, sent+1); err != nil {
		return err
	}
	res, err := bob.next(ctx, since)
	if err != nil {
		return err
	}
	return wantNumbers("from the next token", res.events(), sent, sent+1)
}
