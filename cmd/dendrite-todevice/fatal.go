package main

import (
	"errors"
	"runtime"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

var errHost = errors.New("a part of Dendrite has given up, and said why above")

// fatalExits makes an orderly stop of what the host's parts do from their own goroutines: logrus.Fatal, when the address is in use
// or a stream of a restarted NATS is gone (setup/jetstream/helpers.go). It would end the process half way through whatever it does, a stop too.
type fatalExits struct {
	serving atomic.Bool
	failed  chan error
}

// handleFatal is called before the host starts, since its goroutines read the handlers. They are those of all loggers: the host's
// standard output is a hook with one of its own, which does not come back from a Fatal to the one that it is a hook of.
func handleFatal() *fatalExits {
	f := &fatalExits{failed: make(chan error, 1)}
	logrus.RegisterExitHandler(f.exiting)
	return f
}

// exiting ends the goroutine that called Fatal, which expects that nothing of its own runs after it. The process ends unless it is serving.
func (f *fatalExits) exiting() {
	if !f.serving.Load() {
		return
	}
	select {
	case f.failed <- errHost:
	default:
	}
	runtime.Goexit()
}
