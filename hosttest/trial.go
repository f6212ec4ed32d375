package hosttest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// patience is the default of Kit.Patience.
const patience = 30 * time.Second

// trial is one homeserver under test, with what it keeps from one start to the next, and what stands between it and the module. Its methods
// are for one goroutine, but for those of its clients and its seam.
type trial struct {
	*seam

	kit     Kit
	setup   Setup
	running atomic.Pointer[Server] // nil while none runs
	http    *http.Client
	names   atomic.Int64
}

// newTrial starts a new homeserver with the configuration of the module.
func newTrial(ctx context.Context, kit Kit, config todevicemodule.Config) (*trial, error) {
	if kit.Patience == 0 {
		kit.Patience = patience
	}
	tr := &trial{kit: kit, seam: newSeam()}
	// One of its own: connections to a homeserver that was stopped are not to be taken for those to the next.
	tr.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	var err error
	if tr.setup, err = tr.newSetup(); err != nil {
		return nil, err
	}
	tr.setup.Config = config
	if err = tr.start(ctx); err != nil {
		return nil, err
	}
	return tr, nil
}

// newSetup returns what a homeserver with nothing in it is started with.
func (tr *trial) newSetup() (s Setup, err error) {
	if s.ServerName, err = newServerName(); err != nil {
		return s, err
	}
	if s.Dir, err = tr.kit.TempDir(); err != nil {
		return s, fmt.Errorf("making a directory for the homeserver: %w", err)
	}
	if s.Database, err = tr.kit.NewDatabase(); err != nil {
		return s, fmt.Errorf("making a database for the homeserver: %w", err)
	}
	s.Wrap = tr.wrap
	return s, nil
}

// start starts the homeserver on what is there.
func (tr *trial) start(ctx context.Context) error {
	tr.began()
	server, err := tr.kit.Start(ctx, tr.setup)
	if err != nil {
		return fmt.Errorf("starting the homeserver: %w", err)
	}
	if server.Module == nil {
		return errors.New("starting the homeserver: it has no Module")
	}
	tr.running.Store(server)
	return nil
}

// stop ends the homeserver as its operator does.
func (tr *trial) stop(ctx context.Context) error {
	server := tr.running.Swap(nil)
	if server == nil {
		return nil
	}
	err := server.Stop(ctx)
	tr.http.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("stopping the homeserver: %w", err)
	}
	return nil
}

// restart ends the homeserver as its operator does, and starts it again.
func (tr *trial) restart(ctx context.Context) error {
	if err := tr.stop(ctx); err != nil {
		return err
	}
	return tr.start(ctx)
}

// crash starts the homeserver again on what its database has by now: nothing that it does from now on until its end reaches the module's tables.
func (tr *trial) crash(ctx context.Context) error {
	tr.cut()
	_ = tr.stop(ctx) // which can't be a clean one
	return tr.start(ctx)
}

// end ends the homeserver for good.
func (tr *trial) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tr.kit.Patience)
	defer cancel()
	return tr.stop(ctx)
}

// name returns one that nothing else of the trial has, good as a localpart and as a transaction ID.
func (tr *trial) name(prefix string) string { return fmt.Sprintf("%s%d", prefix, tr.names.Add(1)) }

// server returns the homeserver that runs, or nil.
func (tr *trial) server() *Server { return tr.running.Load() }

// published returns the last position that can be handed out.
func (tr *trial) published() types.Position { return tr.server().Module.LatestPosition() }

// await waits until the condition holds, and returns an error with what was last seen where it does not in time.
func (tr *trial) await(ctx context.Context, what string, condition func() (holds bool, saw any, err error)) error {
	const pause = 10 * time.Millisecond
	end := time.Now().Add(tr.kit.Patience)
	for {
		holds, saw, err := condition()
		if err != nil || holds {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: not so after %s, the last that was seen is %v", what, tr.kit.Patience, saw)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w, the last that was seen is %v", what, ctx.Err(), saw)
		case <-time.After(pause):
		}
	}
}

// within returns what comes out of the channel, or an error where nothing does in time.
func within[T any](ctx context.Context, tr *trial, what string, from <-chan T) (got T, err error) {
	timer := time.NewTimer(tr.kit.Patience)
	defer timer.Stop()
	select {
	case got = <-from:
		return got, nil
	case <-timer.C:
		return got, fmt.Errorf("%s: not so after %s", what, tr.kit.Patience)
	case <-ctx.Done():
		return got, fmt.Errorf("%s: %w", what, ctx.Err())
	}
}

// together calls f so many times at once, with the numbers from 0, and joins the errors.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// newServerName returns a name that no other server of any test has.
func newServerName() (string, error) {
	address, err := remote.FreeAddress()
	if err != nil {
		return "", err
	}
	return remote.NameAt(address)
}
