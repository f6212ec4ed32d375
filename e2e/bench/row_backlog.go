package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
)

const (
	fewWaiting     = 100
	backlogSenders = 16
	backlogRounds  = 15
)

// backlogCosts is what requests cost a side at each size of a device's backlog.
type backlogCosts struct {
	Database e2e.Backend   `json:"database"`
	Side     side          `json:"side"`
	Steps    []backlogCost `json:"steps"`
}

// backlogCost has the requests of a device with a backlog and, of those to compare with, of one for which 100 wait. FromToken is
// a /sync with a token from before the backlog, FromNothing one without.
type backlogCost struct {
	Waiting        int    `json:"waiting"`
	Put            spread `json:"put"`
	FromToken      spread `json:"sync_since"`
	FromNothing    spread `json:"sync_no_since"`
	FewFromToken   spread `json:"sync_since_100"`
	FewFromNothing spread `json:"sync_no_since_100"`
}

type backlogSide struct {
	big, few *backlog
	waiting  int
	costs    *backlogCosts
}

// measureBacklog lets the backlog of a device grow, and measures what a first /sync and a message to it cost at each size.
func measureBacklog(ctx context.Context, s *stage) ([]*result, error) {
	const name = "backlog"
	sides := map[side]*backlogSide{}
	since, nothing := figures{}, figures{}
	for _, size := range s.b.backlogs {
		err := s.inTurn(ctx, filled, fmt.Sprintf("%s of %d", name, size), 1, func(_ int, of *server) (err error) {
			p := sides[of.side]
			if p == nil {
				if p, err = s.newBacklogSide(ctx, of); err != nil {
					return err
				}
				sides[of.side] = p
			}
			if of.side != ours && size > s.b.backlogElse {
				return nil
			}
			return p.grow(ctx, s.b, of, size)
		})
		if err != nil {
			return nil, err
		}
	}
	err := s.inTurn(ctx, filled, name, 1, func(_ int, of *server) error {
		p := sides[of.side]
		cost := p.costs.Steps[len(p.costs.Steps)-1]
		a, b := since.of(of.side), nothing.of(of.side)
		a.add(cost.FromToken.P50 / cost.FewFromToken.P50)
		b.add(cost.FromNothing.P50 / cost.FewFromNothing.P50)
		if cost.Waiting != s.b.backlogs[len(s.b.backlogs)-1] {
			a.Note = fmt.Sprintf("%d waiting", cost.Waiting)
			b.Note = a.Note
		}
		for _, f := range []*backlog{p.big, p.few} {
			w, checked, err := f.drain(ctx, s.b, s.b.patience)
			if err != nil {
				return err
			}
			if !checked {
				a.Note += " arrival not checked"
			}
			a.Wrong = a.Wrong.plus(w)
		}
		return nil
	})
	title := fmt.Sprintf("first /sync, %d waiting over %d waiting", s.b.backlogs[len(s.b.backlogs)-1], fewWaiting)
	return []*result{
		{Row: name, Database: s.db, Title: title + ", with a since", Unit: "x", Less: true, Within: true, Sides: since, Target: target{AtMost: 1.5}},
		{Row: name, Database: s.db, Title: title + ", without", Unit: "x", Less: true, Within: true, Sides: nothing, Target: target{AtMost: 1.5}},
	}, err
}

func (s *stage) newBacklogSide(ctx context.Context, of *server) (*backlogSide, error) {
	devices, err := of.users(ctx, s.b, backlogSenders+3, 1)
	if err != nil {
		return nil, err
	}
	senders, last := devices[:backlogSenders], devices[backlogSenders]
	big, few := devices[backlogSenders+1:backlogSenders+2], devices[backlogSenders+2:]
	p := &backlogSide{
		big: newBacklog(senders, big, big, last), few: newBacklog(senders, few, few, last),
		costs: &backlogCosts{Database: s.db, Side: of.side},
	}
	s.b.backlogCosts = append(s.b.backlogCosts, p.costs)
	for _, d := range devices[backlogSenders:] {
		if err = d.settle(ctx, nil); err != nil {
			return nil, err
		}
	}
	_, err = p.few.fill(ctx, s.b, fewWaiting, s.b.fillWithin)
	return p, err
}

// grow lets the backlog grow to a size, and measures. What is sent to measure makes it a little larger, and counts towards the next size.
func (p *backlogSide) grow(ctx context.Context, b *bench, of *server, size int) error {
	start := time.Now()
	n, err := p.big.fill(ctx, b, max(0, size-p.waiting), b.fillWithin)
	if err != nil {
		return err
	}
	took := time.Since(start)
	p.waiting += n
	wait := b.profile(ctx, fmt.Sprintf("backlog-%d", size), 5*time.Second, of)
	var put, token, nothing, fewToken, fewNothing []time.Duration
	ask := func(d *device, since string, into *[]time.Duration) {
		if err == nil {
			asked := time.Now()
			_, err = d.sync(ctx, since, 0, nil)
			*into = append(*into, time.Since(asked))
		}
	}
	few, big := p.few.checked[0], p.big.checked[0]
	var body bytes.Buffer
	for round := 0; round < backlogRounds && err == nil; round++ {
		ask(few, few.since, &fewToken)
		ask(big, big.since, &token)
		ask(few, "", &fewNothing)
		ask(big, "", &nothing)
	}
	waiting := p.waiting
	for round := 0; round < backlogRounds && err == nil; round++ {
		data := request(&body, p.big.book.next(0), p.big.names)
		sent := time.Now()
		err = p.big.put(ctx, 0, data)
		put = append(put, time.Since(sent))
		p.waiting++
	}
	if err != nil {
		return err
	}
	cost := backlogCost{
		waiting, newSpread(put), newSpread(token), newSpread(nothing), newSpread(fewToken), newSpread(fewNothing),
	}
	p.costs.Steps = append(p.costs.Steps, cost)
	b.progress.say("%d waiting (%d more stored in %s): PUT %.2f ms; first /sync %.2f ms, without a since %.2f ms; with 100 waiting %.2f ms, %.2f ms",
		waiting, n, took.Round(time.Millisecond), cost.Put.P50, cost.FromToken.P50, cost.FromNothing.P50, cost.FewFromToken.P50, cost.FewFromNothing.P50)
	return wait()
}
