package main

import (
	"context"
	"errors"
	"time"
)

const (
	throughputSenders   = 8
	throughputReceivers = 20
)

// measureThroughput counts what is delivered while each of 8 senders makes its next request as soon as the last one is
// answered, and 20 receivers wait in long polls.
func measureThroughput(ctx context.Context, s *stage) ([]*result, error) {
	found := figures{}
	loads := map[side]*load{}
	err := s.inTurn(ctx, alone, "throughput", s.b.rounds, func(_ int, of *server) error {
		l := loads[of.side]
		if l == nil {
			var err error
			if l, err = newThroughputLoad(ctx, s.b, of.homeserver, of.homeserver); err != nil {
				return err
			}
			loads[of.side] = l
		}
		out, err := s.b.runLoad(ctx, "throughput", l, of)
		if err != nil {
			return err
		}
		found.of(of.side).add(out.Delivered)
		found.of(of.side).addOutcome(out)
		return nil
	})
	return []*result{{
		Row: "throughput", Database: s.db, Title: "delivered, 8 senders, 20 receivers", Unit: "messages/s", Sides: found,
		Target: onDatabase(s.db, target{Times: 12}, target{Times: 6}),
	}}, err
}

func newThroughputLoad(ctx context.Context, b *bench, from, to *homeserver) (*load, error) {
	l := &load{devices: 1, window: b.window, warmUp: b.warmUp, length: b.length, patience: b.patience}
	var err error
	if l.senders, err = from.users(ctx, b, throughputSenders, 1); err != nil {
		return nil, err
	}
	l.receivers, err = to.users(ctx, b, throughputReceivers, 1)
	return l, err
}

// runLoad runs a load against servers, tells what it found, and profiles them in the part that counts.
func (b *bench) runLoad(ctx context.Context, name string, l *load, servers ...*server) (*outcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	profiled := make(chan error, 1)
	go func() {
		var err error
		if sleep(ctx, l.warmUp) {
			err = b.profile(ctx, name, l.length, servers...)()
		}
		profiled <- err
	}()
	start := time.Now()
	out, err := l.run(ctx)
	if err != nil {
		cancel()
		return nil, errors.Join(err, <-profiled)
	}
	b.progress.say("%.0f/s delivered; from the 200 to the arrival %.1f ms, p99 %.1f ms; %d wrong, %d refused; all arrived %s after the last request",
		out.Delivered, out.Delay.P50, out.Delay.P99, out.Wrong.total(), out.Refused,
		max(0, time.Since(start)-l.warmUp-l.length).Round(100*time.Millisecond))
	return out, <-profiled
}
