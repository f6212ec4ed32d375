package hosttest

import (
	"context"
	"errors"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
)

// checkTimeout bounds what one promise's check may take. Checks wait for what they expect, not for time.
const checkTimeout = 5 * time.Minute

// Promise is one promise, and how it is checked.
type Promise struct {
	// Name is lower-case words with hyphens.
	Name string
	// Text is the promise in a sentence.
	Text string

	// configure changes the module's configuration for the check; nil changes nothing.
	configure func(*todevicemodule.Config)
	// alone says that the check takes a homeserver of its own. The others are made one after the other on the same, which is started again where its
	// configuration is another one: each has users of its own, and leaves a homeserver that runs.
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

// Check starts the homeserver of the kit and holds it against the promise. It returns nil, or an error that is a *BrokenError (by errors.As), or
// another one where the check itself could not be carried out, as when the homeserver does not start.
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
	if p.alone {
		tr, err := newTrial(ctx, s.kit, p.config())
		if err != nil {
			return err
		}
		return errors.Join(p.broken(p.check(ctx, tr)), tr.end(ctx))
	}
	if err := s.share(ctx, p.config()); err != nil {
		return errors.Join(err, s.end(ctx))
	}
	err := p.broken(p.check(ctx, s.shared))
	if err != nil || s.shared.server() == nil { // whatever it is in by now
		err = errors.Join(err, s.end(ctx))
	}
	return err
}

// share has the shared homeserver run with the configuration.
func (s *series) share(ctx context.Context, config todevicemodule.Config) (err error) {
	if s.shared == nil {
		s.shared, err = newTrial(ctx, s.kit, config)
		return err
	}
	s.shared.forget()
	if s.shared.setup.Config == config {
		return nil
	}
	s.shared.setup.Config = config
	return s.shared.restart(ctx)
}

// config returns the module's configuration for the check.
func (p Promise) config() todevicemodule.Config {
	config := todevicemodule.DefaultConfig()
	config.Enabled = true
	if p.configure != nil {
		p.configure(&config)
	}
	return config
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
