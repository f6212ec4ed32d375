package main

import (
	"context"
	"fmt"
	"time"
)

// millionSide is a server with messages that wait, and an empty one beside it.
type millionSide struct {
	servers map[string]*server
	loads   map[string]*load
	crowds  map[string]*backlog
	rates   map[string][]float64
	waiting int
}

// measureMillion lets a million messages wait for a thousand devices, and measures what a server with them takes beyond an empty one:
// memory, and time of messages to others.
func measureMillion(ctx context.Context, s *stage) ([]*result, error) {
	const name = "million"
	memory, share := figures{}, figures{}
	sides := map[side]*millionSide{}
	err := s.inTurn(ctx, filled, name, 1, func(_ int, of *server) error {
		p, err := s.newMillionSide(ctx, of)
		if err != nil {
			return err
		}
		sides[of.side] = p
		m := memory.of(of.side)
		if err = p.measureMemory(ctx, s.b, m); err != nil {
			return err
		}
		if p.waiting < s.b.million {
			m.Note = fmt.Sprintf("%d waiting", p.waiting)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.inTurn(ctx, filled, name, s.b.rounds, func(_ int, of *server) error {
		p, f := sides[of.side], share.of(of.side)
		for _, role := range []string{empty, filled} {
			out, err := s.b.runLoad(ctx, name, p.loads[role], p.servers[role])
			if err != nil {
				return err
			}
			p.rates[role] = append(p.rates[role], out.Delivered)
			f.addOutcome(out)
		}
		f.add(p.rates[filled][len(p.rates[filled])-1] / p.rates[empty][len(p.rates[empty])-1])
		f.Note = memory.of(of.side).Note
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.inTurn(ctx, filled, name, 1, func(_ int, of *server) error {
		w, checked, err := sides[of.side].crowds[filled].drain(ctx, s.b, s.b.patience)
		m := memory.of(of.side)
		if m.Wrong = w; !checked {
			m.Note += " arrival not checked"
		}
		return err
	})
	waiting := fmt.Sprintf("%d waiting", s.b.million)
	return []*result{
		{Row: name, Database: s.db, Title: "memory with " + waiting + ", over an empty server", Unit: "MiB", Less: true, Within: true, Sides: memory, Target: target{AtMost: 64}},
		{
			Row: name, Database: s.db, Title: "delivered with " + waiting + " for others, over an empty table", Unit: "x", Within: true, Sides: share,
			Target: onDatabase(s.db, target{AtLeast: 0.9}, target{AtLeast: 0.8}),
		},
	}, err
}

func (s *stage) newMillionSide(ctx context.Context, of *server) (*millionSide, error) {
	beside, err := s.server(ctx, of.side, empty)
	if err != nil {
		return nil, err
	}
	p := &millionSide{
		servers: map[string]*server{filled: of, empty: beside}, loads: map[string]*load{}, crowds: map[string]*backlog{}, rates: map[string][]float64{},
	}
	for role, on := range p.servers {
		if p.loads[role], err = newThroughputLoad(ctx, s.b, on.homeserver, on.homeserver); err != nil {
			return nil, err
		}
		if p.crowds[role], err = newCrowd(ctx, s.b, on.homeserver, 4, s.b.millionUsers, crowdDevices, true); err != nil {
			return nil, err
		}
	}
	want := s.b.million
	if of.side != ours {
		want = min(want, s.b.millionElse)
	}
	s.b.progress.say("%d messages are to wait", want)
	start := time.Now()
	n, err := p.crowds[filled].fill(ctx, s.b, want/(s.b.millionUsers*crowdDevices), s.b.fillWithin)
	p.waiting = n * s.b.millionUsers * crowdDevices
	s.b.progress.say("%d messages wait after %s", p.waiting, time.Since(start).Round(time.Millisecond))
	return p, err
}

// memoryDetails is the resident memory of both servers in MiB: at most while the messages came, and after a new start and the
// same requests to both.
type memoryDetails struct {
	PeakOfFilling float64 `json:"peak_of_filling"`
	AfterFilling  float64 `json:"after_filling"`
	Filled        float64 `json:"filled"`
	Empty         float64 `json:"empty"`
}

func (p *millionSide) measureMemory(ctx context.Context, b *bench, f *figure) error {
	var d memoryDetails
	status, err := readMemory(p.servers[filled].PID())
	if err != nil {
		return err
	}
	d.PeakOfFilling, d.AfterFilling = status.peak, status.resident
	for role, into := range map[string]*float64{filled: &d.Filled, empty: &d.Empty} {
		if *into, err = p.residentAfterStart(ctx, role); err != nil {
			return err
		}
	}
	b.progress.say("%.0f MiB with %d waiting, %.0f MiB empty; while they came at most %.0f MiB", d.Filled, p.waiting, d.Empty, d.PeakOfFilling)
	f.add(d.Filled - d.Empty)
	f.Details = d
	return nil
}

// residentAfterStart starts a server anew, reads with devices of the crowd and sends a little, and returns the memory that is resident
// then.
func (p *millionSide) residentAfterStart(ctx context.Context, role string) (float64, error) {
	of, l := p.servers[role], p.loads[role]
	if err := of.Stop(); err != nil {
		return 0, err
	}
	of.transport.CloseIdleConnections()
	if err := of.Start(); err != nil {
		return 0, err
	}
	for _, d := range p.crowds[role].checked {
		if _, err := d.sync(ctx, d.since, 0, nil); err != nil {
			return 0, err
		}
	}
	steady := *l
	steady.rate, steady.warmUp, steady.length = 50, 0, 2*time.Second
	if _, err := steady.run(ctx); err != nil {
		return 0, err
	}
	status, err := readMemory(of.PID())
	return status.resident, err
}
