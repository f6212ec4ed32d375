package outbox

import (
	"context"
	"math"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Aside is what an operator does with EDUs that stand aside: a storage.Inspector has it.
type Aside interface {
	Readmit(ctx context.Context, destination string, position types.Position, at time.Time) (int, error)
	Discard(ctx context.Context, destination string, position types.Position) ([]storage.Refusal, error)
}

// State is how it is with a destination.
type State struct {
	// Until is until when the host leaves the destination alone; the zero time or a past one says that it does not.
	Until time.Time
	// GivenUp says that the host does not try again by itself. The watch does, all the same.
	GivenUp bool
	// Failure is what became of the last attempt to send or to reach the destination; nil if a transaction has
	// succeeded since, or nothing waits for it.
	Failure *Failure
}

// Failure is why a destination could not be sent to.
type Failure struct {
	At time.Time
	Answer
}

// State returns how it is with a destination, known or not.
func (o *Outbox) State(destination string) (s State) {
	o.mu.Lock()
	if d, ok := o.destinations[destination]; ok {
		s.Failure = d.failure
	}
	o.mu.Unlock()
	s.Until, s.GivenUp = o.Host.Backoff(destination)
	return s
}

// note takes down what became of an attempt.
func (o *Outbox) note(d *destination, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d.failure = nil
	if err != nil {
		d.failure = &Failure{At: o.Now(), Answer: answerTo(err)}
	}
}

// Retry has everything that stands aside for a destination sent again now, what was set aside for good included, and makes
// the host forget that it leaves the destination alone. It returns how many EDUs stood aside. An error may come after
// some were readmitted: those are sent again, and it returns how many.
func (o *Outbox) Retry(ctx context.Context, destination string) (int, error) {
	return o.readmit(ctx, destination, 0)
}

// RetryOne is Retry for the EDU at a position alone. It returns zero, and does nothing, if none stands aside there.
func (o *Outbox) RetryOne(ctx context.Context, destination string, position types.Position) (int, error) {
	return o.readmit(ctx, destination, position)
}

func (o *Outbox) readmit(ctx context.Context, name string, position types.Position) (int, error) {
	now := o.Now()
	n, err := o.Aside.Readmit(ctx, name, position, now.Truncate(time.Microsecond))
	if n == 0 && (err != nil || position != 0) {
		return 0, err
	}
	o.Host.Revive(name)
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.destination(name)
	if n > 0 {
		d.retryAt = now
		d.readmits++
	}
	d.sends++ // what a look that is under way finds out is out of date
	d.failing, d.belled, d.unheard, d.lookAt = false, false, 0, time.Time{}
	o.forget(d)
	o.wakeWatch()
	return n, err
}

// Discard deletes EDUs that stand aside: the one at a position, or every one of the destination's for zero. It returns what it
// deleted, without the contents, before an error too. One that is being sent again at that moment may arrive, and does not stand
// aside again.
func (o *Outbox) Discard(ctx context.Context, destination string, position types.Position) ([]storage.Refusal, error) {
	o.mu.Lock()
	d := o.destination(destination)
	d.held++
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		d.held--
		o.forget(d)
	}()
	gone, err := o.discard(ctx, d, position)
	if len(gone) > 0 {
		o.tellDiscarded(gone)
		o.relearn(ctx, d)
	}
	return gone, err
}

func (o *Outbox) tellDiscarded(gone []storage.Refusal) {
	if o.Trace == nil {
		return
	}
	records := make([]trace.Record, 0, len(gone))
	for i := range gone {
		records = append(records, trace.Record{
			Step: trace.Dropped, Reason: trace.Discarded, EDUID: gone[i].MessageID, Destination: gone[i].Destination, Position: gone[i].Position,
		})
	}
	o.Trace.Record(records...)
}

func (o *Outbox) discard(ctx context.Context, d *destination, position types.Position) ([]storage.Refusal, error) {
	d.aside.Lock()
	defer d.aside.Unlock()
	gone, err := o.Aside.Discard(ctx, d.name, position)
	if d.discarded != nil {
		for i := range gone {
			d.discarded[gone[i].Position] = struct{}{}
		}
	}
	return gone, err
}

// relearn looks up when the next refused EDU is due. A call of Send does that by itself, and knows better.
func (o *Outbox) relearn(ctx context.Context, d *destination) {
	sends, readmits, busy := o.generation(d)
	next, err := o.Store.Refused(ctx, d.name, time.UnixMicro(math.MaxInt64), 1)
	if err != nil || busy {
		return // it is found out when the time comes that is known now
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if d.sends != sends || d.readmits != readmits {
		return
	}
	d.retryAt = time.Time{}
	if len(next) > 0 {
		d.retryAt = next[0].RetryAt
	}
}

func (o *Outbox) generation(d *destination) (sends, readmits uint64, busy bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return d.sends, d.readmits, d.busy > 0
}

// heedDiscards has keep remember, until stop is called, what is discarded.
func (d *destination) heedDiscards() (stop func()) {
	d.aside.Lock()
	defer d.aside.Unlock()
	d.discarded = make(map[types.Position]struct{})
	return func() {
		d.aside.Lock()
		defer d.aside.Unlock()
		d.discarded = nil
	}
}

// keep has a refused EDU stand aside, and returns true, unless it was discarded since it was read.
func (s *session) keep(ctx context.Context, r storage.Refusal) (bool, error) {
	s.d.aside.Lock()
	defer s.d.aside.Unlock()
	if _, discarded := s.d.discarded[r.Position]; discarded {
		return false, nil
	}
	return true, s.Store.Refuse(ctx, r)
}
