package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

const idleClients = 16

// measureIdle counts how many /sync requests are answered that have nothing to tell and do not wait for anything.
func measureIdle(ctx context.Context, s *stage) ([]*result, error) {
	found := figures{}
	clients := map[side][]*device{}
	err := s.inTurn(ctx, alone, "idle", s.b.rounds, func(_ int, of *server) (err error) {
		if clients[of.side] == nil {
			if clients[of.side], err = of.users(ctx, s.b, idleClients, 1); err != nil {
				return err
			}
		}
		wait := s.b.profile(ctx, "idle", s.b.length, of)
		rate, answers, err := idle(ctx, clients[of.side], s.b.length)
		if err = errors.Join(err, wait()); err != nil {
			return err
		}
		s.b.progress.say("%.0f/s, median %.2f ms, p99 %.2f ms", rate, answers.P50, answers.P99)
		f := found.of(of.side)
		f.add(rate)
		f.addDetail(answers)
		return nil
	})
	return []*result{{
		Row: "idle", Database: s.db, Title: "idle /sync, 16 clients", Unit: "requests/s", Sides: found,
		Target: onDatabase(s.db, target{Times: 4}, target{Times: 2}),
	}}, err
}

func idle(ctx context.Context, clients []*device, length time.Duration) (rate float64, answers spread, err error) {
	for _, c := range clients {
		if err = c.settle(ctx, nil); err != nil {
			return 0, spread{}, err
		}
	}
	took, errs := make([][]time.Duration, len(clients)), make([]error, len(clients))
	start := time.Now()
	var wait sync.WaitGroup
	for i, c := range clients {
		wait.Go(func() {
			for errs[i] == nil && time.Since(start) < length {
				asked := time.Now()
				c.since, errs[i] = c.sync(ctx, c.since, 0, nil)
				took[i] = append(took[i], time.Since(asked))
			}
		})
	}
	wait.Wait()
	elapsed := time.Since(start)
	var all []time.Duration
	for _, t := range took {
		all = append(all, t...)
	}
	return float64(len(all)) / elapsed.Seconds(), newSpread(all), errors.Join(errs...)
}
