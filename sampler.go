package todevicemodule

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	sampleInterval = time.Minute
	// sampleRest is how many times as long as a look the rest after it is at the least: the look reads much of what is kept.
	sampleRest = 20
	// sampleTimeout bounds one look, and with sampleRest the time between two.
	sampleTimeout = time.Minute
	// worstQueues is how many of the largest and of the oldest queues are shown.
	worstQueues = 5
)

// sampler looks at what a store holds once in a while, in a goroutine of its own.
type sampler struct {
	store    storage.Inspector
	imported func() types.Position // up to here positions do not tell ages
	metrics  *metrics
	log      *logrus.Entry
	cancel   context.CancelFunc
	stopped  chan struct{}
}

func newSampler(store storage.Inspector, imported func() types.Position, m *metrics, log *logrus.Entry) *sampler {
	return &sampler{store: store, imported: imported, metrics: m, log: log, stopped: make(chan struct{})}
}

func (s *sampler) start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(s.stopped)
		for {
			timer := time.NewTimer(s.look(ctx))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
	}()
}

func (s *sampler) stop() {
	s.cancel()
	<-s.stopped
}

// look takes one sample, and returns how long to rest.
func (s *sampler) look(ctx context.Context) time.Duration {
	started := time.Now()
	taken, err := s.take(ctx)
	taken.at = time.Now()
	taken.took = taken.at.Sub(started)
	switch {
	case err == nil:
		s.metrics.gauges.set(taken)
	case ctx.Err() == nil:
		s.metrics.failures.add(failedSample, 1)
		s.metrics.gauges.clear()
		s.log.WithError(err).Warn("to_device: looking at what is stored, for the metrics, failed; trying again later")
	}
	return max(sampleInterval, sampleRest*taken.took)
}

func (s *sampler) take(ctx context.Context) (taken sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	if taken.totals, err = s.store.Totals(ctx); err != nil {
		return taken, err
	}
	if taken.largest, err = s.store.CountQueues(ctx, storage.BySize, nil, worstQueues); err != nil {
		return taken, err
	}
	taken.oldest, err = s.store.CountQueues(ctx, storage.ByAge, &storage.Queue{Oldest: s.imported()}, worstQueues)
	return taken, err
}
