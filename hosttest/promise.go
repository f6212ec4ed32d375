package hosttest

import (
	"context"
	"errors"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
)

// checkTimeout bounds what one promise's check may take. Checks wait for what they expect, not for time.
const checkTimeout = 2 * time.Minute

// Promise is one promise, and how it is checked.
type Promise struct {
	// Name is lower-case words with hyphens.
	Name string
	// Text is the promise in a sentence.
	Text string

	// configure changes the module's configuration for the check; nil changes nothing.
	configure func(*todevicemodule.Config)
	// check returns how the promise was seen broken by the homeserver that runs, or nil.
	check func(ctx context.Context, tr *trial) error
}

// Promises returns all that a homeserver is held against, in an order in which a maintainer who starts from nothing can make them hold: each
// needs those before it at the most.
func Promises() []Promise {
	var all []Promise
	for _, part := range [][]Promise{
		accountPromises, clientPromises, syncPromises, deletionPromises, storagePromises, inboundPromises, outboundPromises,
	} {
		all = append(all, part...)
	}
	return all
}

// Check starts the homeserver of the kit and holds it against the promise. It returns nil or a *BrokenError, and any other error where the
// check itself could not be carried out, as when the homeserver does not start.
func (p Promise) Check(ctx context.Context, kit Kit) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	tr, err := newTrial(ctx, kit, p.configure)
	if err != nil {
		return err
	}
	err = p.check(ctx, tr)
	endErr := tr.end(ctx)
	if err == nil {
		return endErr
	}
	return &BrokenError{Promise: p, Err: errors.Join(err, endErr)}
}
