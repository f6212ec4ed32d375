package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keeper keeps a server running as a supervisor does: it starts it again whenever it has ended, but while a
// fault keeps it down.
type keeper struct {
	s *Server
	// runs counts the ends of processes: what was in a server's memory may be gone if it has changed.
	runs   atomic.Int64
	mayEnd func(output string) bool

	mu      sync.Mutex
	wanted  bool
	ordered bool          // the end of the present process
	logged  int64         // the size of the log before it
	changed chan struct{} // holds a token when wanted was set
	failed  int           // starts, since the last that went well
	err     error         // of the last start
	faults  []error

	quit, done chan struct{}
}

// keep starts a server and keeps it running until the test ends. By its output mayEnd tells whether a server that has ended by itself
// was to do so.
func keep(t testing.TB, s *Server, mayEnd func(output string) bool) *keeper {
	t.Helper()
	k := &keeper{
		s: s, wanted: true, mayEnd: mayEnd,
		changed: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	go k.run()
	t.Cleanup(k.end)
	k.awaitUp(t)
	return k
}

func (k *keeper) run() {
	defer close(k.done)
	for {
		select {
		case <-k.quit:
			return
		default:
		}
		launched, logged, err := k.launch()
		if err == nil && !launched {
			select {
			case <-k.changed:
			case <-k.quit:
			}
			continue
		}
		if err == nil {
			err = k.s.awaitAnswer()
		}
		k.started(err)
		if err != nil {
			time.Sleep(50 * time.Millisecond) // it ends at once where its database is away
			continue
		}
		select {
		case <-k.s.exited:
			k.ended(logged)
		case <-k.quit:
			return
		}
	}
}

// launch starts the process if it is wanted.
func (k *keeper) launch() (launched bool, logged int64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.wanted {
		return false, 0, nil
	}
	k.ordered, k.logged = false, k.s.logSize()
	return true, k.logged, k.s.launch()
}

func (k *keeper) started(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; err == nil {
		k.failed = 0
		return
	}
	k.failed++
	if k.s.running() { // it hangs
		k.faults = append(k.faults, err)
		_ = k.s.Kill()
	}
}

// ended looks at the end of a process that had answered.
func (k *keeper) ended(logged int64) {
	k.runs.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ordered {
		return
	}
	k.s.mu.Lock()
	select {
	case <-k.s.ready:
		k.s.ready = make(chan struct{})
	default:
	}
	k.s.mu.Unlock()
	if output := k.s.logTail(logged); !k.mayEnd(output) {
		k.faults = append(k.faults, fmt.Errorf("the server ended by itself: %w\n%s", k.s.exitErr, output))
	}
}

// kill ends the process at once, until up.
func (k *keeper) kill() error {
	k.down()
	return k.s.Kill()
}

// stop ends the process as an operator does, until up. A process that did not answer yet may end with an error, and so may one that was
// ending by itself, as it may.
func (k *keeper) stop() error {
	k.down()
	answered := false
	select {
	case <-k.s.Ready():
		answered = true
	default:
	}
	err := k.s.Stop()
	var exit *exec.ExitError
	switch {
	case err == nil, !answered && !k.s.running():
		return nil
	case errors.As(err, &exit) && k.mayEnd(k.s.logTail(k.logged)):
		return nil
	}
	return err
}

func (k *keeper) down() {
	k.runs.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted, k.ordered = false, true
}

// up has the process started again.
func (k *keeper) up() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted = true
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// awaitUp waits until the server answers.
func (k *keeper) awaitUp(t testing.TB) {
	t.Helper()
	within(t, startDeadline, "the server starts", func() (bool, any) {
		select {
		case <-k.s.Ready():
			return true, nil
		default:
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		return false, fmt.Sprintf("%d starts failed: %v", k.failed, k.err)
	})
}

// end stops keeping the server, which runs on.
func (k *keeper) end() {
	select {
	case <-k.quit:
	default:
		close(k.quit)
		k.mu.Lock()
		up := k.err == nil && k.failed == 0 && k.wanted
		k.mu.Unlock()
		if !up {
			_ = k.s.Kill()
		}
	}
	<-k.done
}

// fault returns what the server must not have done.
func (k *keeper) fault() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(k.faults...)
}
