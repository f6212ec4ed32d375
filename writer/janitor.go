package writer

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

const (
	forgetInterval = time.Minute
	// forgottenAtOnce keeps the clean-up's transactions short beside those of the writer.
	forgottenAtOnce = 1000
)

// Janitor deletes transaction records that have expired, in a goroutine of its own.
type Janitor struct {
	store   storage.Store
	log     *logrus.Entry
	cancel  context.CancelFunc
	stopped chan struct{}
}

// NewJanitor returns a Janitor that is not started.
func NewJanitor(store storage.Store, log *logrus.Entry) *Janitor {
	return &Janitor{store: store, log: log, stopped: make(chan struct{})}
}

// Start starts the goroutine.
func (j *Janitor) Start(ctx context.Context) {
	ctx, j.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(j.stopped)
		ticker := time.NewTicker(forgetInterval)
		defer ticker.Stop()
		for {
			j.forget(ctx)
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// Stop ends the goroutine.
func (j *Janitor) Stop() {
	j.cancel()
	<-j.stopped
}

func (j *Janitor) forget(ctx context.Context) {
	now := time.Now()
	for {
		n, err := j.store.ForgetTransactions(ctx, now, forgottenAtOnce)
		if err != nil && ctx.Err() == nil {
			j.log.WithError(err).Warn("to_device: deleting old transaction records failed, trying again later")
		}
		if err != nil || n < forgottenAtOnce {
			return
		}
	}
}
