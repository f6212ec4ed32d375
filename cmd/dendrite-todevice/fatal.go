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
// So would logrus.Panic, by which they answer the end of their context (syncapi/consumers/roomserver.go): what they were in the midst of they
// have not acknowledged, and take up again after the next start.
type fatalExits struct {
	serving  atomic.Bool
	stopping atomic.Bool
	failed   chan error
}

// handleFatal is called before the host starts, since its goroutines read the handlers. They are those of all loggers: the host's
// standard output is a hook with one of its own, which does not come back from a Fatal, nor from a Panic, to the one that it is a hook of.
func handleFatal() *fatalExits {
	f := &fatalExits{failed: make(chan error, 1)}
	logrus.RegisterExitHandler(f.exiting)
	logrus.AddHook(f)
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

// Levels returns that of Panic alone: it is a hook of the logger.
func (*fatalExits) Levels() []logrus.Level { return []logrus.Level{logrus.PanicLevel} }

// Fire ends the goroutine that called Panic, if it did so after its context had ended. At any other time some of them are recovered from.
func (f *fatalExits) Fire(entry *logrus.Entry) error {
	if f.stopping.Load() {
		logrus.WithField(logrus.ErrorKey, entry.Data[logrus.ErrorKey]).Warn("Stopped in the midst of it: " + entry.Message)
		runtime.Goexit()
	}
	return nil
}
