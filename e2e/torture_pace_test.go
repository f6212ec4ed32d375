package e2e

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// What a crowd sends. In the short form, and to a server with the race detector, each sender pauses between two requests, so that it
// loads a server without taking all of a slow machine. In the long form all of them together keep to a rate that leaves room above the
// 200 requests a second to be reached. A server with the race detector would take its time to catch up, instead of suffering faults.
const (
	sendPace = 12 * time.Millisecond // mean pause between two requests
	longRate = 240                   // requests a second

	// A crowd is back on its schedule when what it should have sent takes it less than this.
	onSchedule = 250 * time.Millisecond
	// longestCatchUp is how long it may take for that after a fault until the next one comes all the same.
	longestCatchUp = 20 * time.Second
)

// pace says when a sender sends.
type pace struct {
	mean time.Duration
	// scheduled makes the pace one of a schedule: a sender that waited for an answer makes up for what it did not send
	// meanwhile. Otherwise the pause begins with the answer.
	scheduled bool
	due       atomic.Int64 // in nanoseconds since 1970
}

func newPace(mean time.Duration, scheduled bool) *pace {
	p := &pace{mean: mean, scheduled: scheduled}
	p.due.Store(time.Now().UnixNano())
	return p
}

// pause returns how long to wait before the next request: 0 or less for a sender that is late.
func (p *pace) pause(chance *rand.Rand) time.Duration {
	drawn, now := chance.Int64N(int64(2*p.mean)), time.Now().UnixNano()
	if !p.scheduled {
		p.due.Store(now)
	}
	return time.Duration(p.due.Add(drawn) - now)
}

// behind returns how many requests a sender should have begun and has not.
func (p *pace) behind(now time.Time) float64 {
	return max(0, float64(now.UnixNano()-p.due.Load())/float64(p.mean))
}
