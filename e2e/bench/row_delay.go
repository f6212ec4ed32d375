package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
)

// A rate is shared by so many senders that each waits for its answers without missing the time of its next request, unless
// the server is overloaded.
const delaySenders = 64

func newDelayLoad(ctx context.Context, b *bench, of *homeserver, rate float64) (*load, error) {
	l := &load{devices: 1, rate: rate, warmUp: b.warmUp, length: b.length, patience: b.patience}
	var err error
	if l.senders, err = of.users(ctx, b, delaySenders, 1); err != nil {
		return nil, err
	}
	l.receivers, err = of.users(ctx, b, throughputReceivers, 1)
	return l, err
}

// leastDelay, in milliseconds, stands for that of a message that came before its 200, which nothing can be compared with.
const leastDelay = 0.001

// measureDelay measures from the 200 to the arrival at a rate that every server carries.
func measureDelay(ctx context.Context, s *stage) ([]*result, error) {
	const rate = 100
	medians, p99s := figures{}, figures{}
	err := s.inTurn(ctx, alone, "delay", s.b.rounds, func(_ int, of *server) error {
		out, err := s.delayAt(ctx, of, "delay", rate)
		if err != nil {
			return err
		}
		for found, value := range map[*figure]float64{medians.of(of.side): out.Delay.P50, p99s.of(of.side): out.Delay.P99} {
			found.add(max(value, leastDelay))
			found.addOutcome(out)
			if !out.carried() {
				found.Note = fmt.Sprintf("only %s/s delivered", number(out.Delivered))
			}
		}
		return nil
	})
	half := target{Times: 2}
	return []*result{
		{Row: "delay", Database: s.db, Title: "from the 200 to arrival at 100/s, median", Unit: "ms", Less: true, Sides: medians, Target: half},
		{Row: "delay", Database: s.db, Title: "from the 200 to arrival at 100/s, p99", Unit: "ms", Less: true, Sides: p99s, Target: half},
	}, err
}

// measureDelayAtRate measures from the 200 to the arrival at a rate that unmodified Dendrite may not carry.
func measureDelayAtRate(ctx context.Context, s *stage) ([]*result, error) {
	const rate = 1000
	found := figures{}
	err := s.inTurn(ctx, alone, "delay-1000", s.b.rounds, func(round int, of *server) error {
		f := found.of(of.side)
		if round > 0 && f.Cannot != "" {
			return nil
		}
		out, err := s.delayAt(ctx, of, "delay-1000", rate)
		if err != nil {
			return err
		}
		f.addOutcome(out)
		if f.add(out.Delay.P99); !out.carried() {
			f.Cannot = fmt.Sprintf("%s/s, p99 %s ms", number(out.Delivered), number(out.Delay.P99))
		}
		return nil
	})
	return []*result{{
		Row: "delay-1000", Database: s.db, Title: "from the 200 to arrival at 1,000/s, p99", Unit: "ms", Less: true, Sides: found,
		Target: onDatabase(s.db, target{AtMost: 50}, target{AtMost: 100}),
	}}, err
}

func (s *stage) delayAt(ctx context.Context, of *server, name string, rate float64) (*outcome, error) {
	l := s.b.delayLoads[of]
	if l == nil {
		var err error
		if l, err = newDelayLoad(ctx, s.b, of.homeserver, rate); err != nil {
			return nil, err
		}
		s.b.delayLoads[of] = l
	}
	l.rate, l.behind = rate, max(500, int64(rate)) // a second behind
	return s.b.runLoad(ctx, name, l, of)
}

// curve is the outcome of a side at each offered rate.
type curve struct {
	Database e2e.Backend `json:"database"`
	Side     side        `json:"side"`
	Points   []point     `json:"points"`
}

type point struct {
	Offered float64  `json:"offered_per_second"`
	Carried bool     `json:"carried"`
	Outcome *outcome `json:"outcome"`
}

// measureSweep measures the delay at rising rates, each side up to the first that it does not carry. It has no line in the
// table: it makes a plot.
func measureSweep(ctx context.Context, s *stage) ([]*result, error) {
	curves := map[side]*curve{}
	for _, of := range s.sides() {
		curves[of] = &curve{Database: s.db, Side: of}
		s.b.curves = append(s.b.curves, curves[of])
	}
	for _, rate := range s.b.rates {
		err := s.inTurn(ctx, alone, fmt.Sprintf("sweep at %.0f/s", rate), 1, func(_ int, of *server) error {
			c := curves[of.side]
			if slices.ContainsFunc(c.Points, func(p point) bool { return !p.Carried }) {
				return nil
			}
			out, err := s.delayAt(ctx, of, fmt.Sprintf("sweep-%.0f", rate), rate)
			if err == nil {
				c.Points = append(c.Points, point{rate, out.carried(), out})
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}
