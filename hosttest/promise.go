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
	// alone says that the check takes a homeserver of its own, as one that has a configuration of its own does. The others are made one after the
	// other on the same: each has users of its own, and leaves a homeserver that runs.
	alone bool
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
	s := &series{kit: kit}
	return errors.Join(s.check(ctx, p), s.end(ctx))
}

// series is checks one after the other.
type series struct {
	kit    Kit
	shared *trial // nil while there is none
}

func (s *series) check(ctx context.Context, p Promise) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if p.alone || p.configure != nil {
		tr, err := newTrial(ctx, s.kit, p.configure)
		if err != nil {
			return err
		}
		return errors.Join(p.broken(p.check(ctx, tr)), tr.end(ctx))
	}
	if s.shared == nil {
		var err error
		if s.shared, err = newTrial(ctx, s.kit, nil); err != nil {
			return err
		}
	}
	s.shared.forget()
	err := p.broken(p.check(ctx, s.shared))
	if err != nil || s.shared.server() == nil { // whatever it is in by now
		err = errors.Join(err, s.end(ctx))
	}
	return err
}

func (p Promise) broken(err error) error {
	if err == nil {
		return nil
	}
	return &BrokenError{Promise: p, Err: err}
}

// end ends the homeserver that the checks shared.
func (s *series) end(ctx context.Context) error {
	if s.shared == nil {
		return nil
	}
	defer func() { s.shared = nil }()
	return s.shared.end(ctx)
}
