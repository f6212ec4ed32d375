package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ledger records what was accepted and what arrived in one load, and compares them: each message that was answered with 200
// arrives once at each device that it was sent to, and those of one sender in the order in which they were sent.
type ledger struct {
	load     string
	start    time.Time // of all times in it
	outgoing []outgoing
	incoming []incoming
	accepted atomic.Int64 // copies
	arrived  atomic.Int64
}

// outgoing is what one sender sent, by number. It belongs to the sender's goroutine until that has ended.
type outgoing struct{ sent []sent }

type sent struct {
	to []int // receivers
	// When it was to be sent, was sent, and was answered.
	due, begun, answered time.Duration
	ok                   bool // answered with 200
}

// incoming is what one receiver got, in the order of arrival.
type incoming struct {
	mu       sync.Mutex
	arrivals []arrival
	strays   int // messages of nobody in this load
}

type arrival struct {
	sender, seq int
	at          time.Duration
}

func newLedger(senders, receivers int) *ledger {
	return &ledger{
		load: newLoadName(), start: time.Now(),
		outgoing: make([]outgoing, senders), incoming: make([]incoming, receivers),
	}
}

func (l *ledger) now() time.Duration { return time.Since(l.start) }

// next returns the mark of the sender's next message.
func (l *ledger) next(sender int) mark {
	return mark{load: l.load, sender: sender, seq: len(l.outgoing[sender].sent)}
}

// sent records the answer to the sender's next message.
func (l *ledger) sent(sender int, s sent) {
	o := &l.outgoing[sender]
	o.sent = append(o.sent, s)
	if s.ok {
		l.accepted.Add(int64(len(s.to)))
	}
}

// got records the marks of one /sync response.
func (l *ledger) got(receiver int, marks []string, at time.Duration) {
	in := &l.incoming[receiver]
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, text := range marks {
		m, ok := parseMark(text)
		if !ok || m.load != l.load || m.sender < 0 || m.sender >= len(l.outgoing) {
			in.strays++
			continue
		}
		in.arrivals = append(in.arrivals, arrival{m.sender, m.seq, at})
		l.arrived.Add(1)
	}
}

// onTheWay returns how many accepted copies have not arrived. It counts a doubled one twice.
func (l *ledger) onTheWay() int64 { return l.accepted.Load() - l.arrived.Load() }

// wrong counts broken promises, in copies.
type wrong struct {
	Lost      int `json:"lost"`
	Doubled   int `json:"doubled"`
	Reordered int `json:"reordered"`
	// Stray is what arrived and was not sent there, or in an earlier load.
	Stray int `json:"stray"`
}

func (w wrong) total() int { return w.Lost + w.Doubled + w.Reordered + w.Stray }

func (w wrong) plus(o wrong) wrong {
	return wrong{w.Lost + o.Lost, w.Doubled + o.Doubled, w.Reordered + o.Reordered, w.Stray + o.Stray}
}

// delivery is the first arrival of a copy.
type delivery struct {
	*sent
	at time.Duration
}

// check compares what was accepted with what arrived so far. It is called when the senders have ended. A message that was
// refused may arrive or not.
func (l *ledger) check() (deliveries []delivery, w wrong) {
	deliveries = make([]delivery, 0, l.arrived.Load())
	seen := make([][]bool, len(l.outgoing))
	last := make([]int, len(l.outgoing))
	for r := range l.incoming {
		for s := range l.outgoing {
			seen[s], last[s] = make([]bool, len(l.outgoing[s].sent)), -1
		}
		deliveries = l.incoming[r].check(r, l.outgoing, seen, last, deliveries, &w)
		for s, o := range l.outgoing {
			for seq, m := range o.sent {
				if m.ok && !seen[s][seq] && slices.Contains(m.to, r) {
					w.Lost++
				}
			}
		}
	}
	return deliveries, w
}

func (in *incoming) check(r int, out []outgoing, seen [][]bool, last []int, deliveries []delivery, w *wrong) []delivery {
	in.mu.Lock()
	defer in.mu.Unlock()
	w.Stray += in.strays
	for _, a := range in.arrivals {
		sender := out[a.sender].sent
		switch {
		case a.seq < 0 || a.seq >= len(sender) || !slices.Contains(sender[a.seq].to, r):
			w.Stray++
			continue
		case seen[a.sender][a.seq]:
			w.Doubled++
			continue
		case a.seq < last[a.sender]:
			w.Reordered++
		}
		seen[a.sender][a.seq] = true
		last[a.sender] = max(last[a.sender], a.seq)
		deliveries = append(deliveries, delivery{&sender[a.seq], a.at})
	}
	return deliveries
}
