package outbox

import (
	"context"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// What tests measure by.
const (
	MaxEDUBytes         = maxEDUBytes
	MaxEDUs             = maxEDUs
	MaxTransactionBytes = maxTransactionBytes
	EnvelopeBytes       = envelopeBytes
	MaxAnswerBytes      = maxAnswerBytes
	FailuresAlike       = failuresAlike
	RetriedInARow       = retriedInARow
	DrainFor            = drainFor
	Tick                = tick
	LookPause           = lookPause
	HintPause           = hintPause
	HintLife            = hintLife
	Soon                = soon
	Patience            = patience
	MaxPatience         = maxPatience
	RungForAtOnce       = rungForAtOnce
	AskedAtOnce         = askedAtOnce
	AskedASecond        = askedASecond
)

// Pauses are those between the refusals of an EDU.
var Pauses = pauses

// Canonical is canonical.
var Canonical = canonical

// IsPlain is isPlain.
var IsPlain = isPlain

// Remembered returns of how many destinations anything is remembered.
func (o *Outbox) Remembered() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.destinations)
}

// SentThrough returns up to where a destination's line is done with; zero if nothing is remembered of it.
func (o *Outbox) SentThrough(destination string) types.Position {
	o.mu.Lock()
	d := o.destinations[destination]
	o.mu.Unlock()
	if d == nil {
		return 0
	}
	d.sending.Lock()
	defer d.sending.Unlock()
	return d.sentThrough
}

// Sending returns for how many calls of Send to a destination have begun and not ended.
func (o *Outbox) Sending(destination string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := o.destinations[destination]; d != nil {
		return d.busy
	}
	return 0
}

// Started reports whether Start has succeeded.
func (o *Outbox) Started() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.running != nil
}

// Stopping reports whether Stop has been called.
func (o *Outbox) Stopping() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stopping
}

// Wake has the watch go around.
func (o *Outbox) Wake() { o.wakeWatch() }

// Woken reports whether the watch was woken, and takes the token.
func (o *Outbox) Woken() bool {
	select {
	case <-o.wake:
		return true
	default:
		return false
	}
}

// Settle has the watch go around until it finds nothing more to do at this time.
func (o *Outbox) Settle(ctx context.Context) error {
	for !o.settled() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		o.wakeWatch()
		time.Sleep(time.Millisecond)
	}
	return nil
}

func (o *Outbox) settled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.Now()
	for _, d := range o.destinations {
		if d.tending || o.needsCare(d, now) {
			return false
		}
	}
	return true
}
