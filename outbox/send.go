package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
)

const (
	// drainFor is for how long a call of Send begins further transactions. The host's next events wait
	// that long at the most, and what is left then costs another ring.
	drainFor = time.Second
	// lingerFor spares rings, each of which costs the host five writes to its database: at 100 messages a
	// second that was most of the work.
	lingerFor = 50 * time.Millisecond
	// deliverTimeout bounds a transaction without PDUs, which a destination need only store. The host
	// gives every transaction 5 minutes, which a destination may need for PDUs.
	deliverTimeout = time.Minute
)

// Deliver sends one transaction. It returns nil after the destination's 200, and a
// gomatrix.HTTPError for another answer.
type Deliver func(ctx context.Context, t gomatrixserverlib.Transaction) error

// Send sends a transaction of the host's together with what waits for its destination, in as many
// transactions as that takes. The host calls it in the place of deliver, for one transaction at a time to a
// destination; more wait for each other. An EDU of ours is done with once the destination has accepted
// it. One that it refuses stands aside.
//
// It returns nil once the host's own part has been accepted. Without such a part it returns nil unless the
// destination failed: an EDU that was refused is no failure.
func (o *Outbox) Send(ctx context.Context, t gomatrixserverlib.Transaction, deliver Deliver) error {
	host, rung := withoutDoorbells(t)
	d := o.begin(string(t.Destination))
	if d == nil {
		if isEmpty(host) {
			return context.Canceled
		}
		host.TransactionID = idOf(host.TransactionID, digest(&host), host.OriginServerTS)
		return deliver(ctx, host)
	}
	d.sending.Lock()
	defer d.sending.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.running, cancel)()
	s := &session{Outbox: o, ctx: ctx, d: d, host: host, pending: !isEmpty(host), deliver: deliver, until: o.Now().Add(drainFor)}
	err := s.run()
	o.end(s, rung, err)
	if refusal := (*refusalError)(nil); errors.As(err, &refusal) {
		return refusal.error // as the host knows it
	}
	return err
}

func isEmpty(t gomatrixserverlib.Transaction) bool { return len(t.PDUs) == 0 && len(t.EDUs) == 0 }

// begin returns nil when the outbox is stopping.
func (o *Outbox) begin(name string) *destination {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopping {
		return nil
	}
	o.sends.Add(1)
	d := o.destination(name)
	d.busy++
	d.sends++
	return d
}

func (o *Outbox) end(s *session, rung bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := s.d
	d.busy--
	d.belled, d.unheard = false, 0
	d.failing, d.holdsBell = err != nil, err != nil && rung
	d.lookAt = time.Time{}
	if err != nil || s.broken {
		d.lookAt = o.Now().Add(tick)
	}
	if s.drained && d.version == s.version && !d.undeleted {
		d.waiting = false
	}
	if d.readmits == s.readmits {
		d.retryAt = s.retryAt
	}
	o.forget(d)
	o.wakeWatch()
	o.sends.Done()
}

// session is one call of Send. It runs with the destination's sending held.
type session struct {
	*Outbox
	ctx     context.Context
	d       *destination
	host    gomatrixserverlib.Transaction // the host's part
	pending bool                          // the host's part was not sent yet
	deliver Deliver
	until   time.Time // when no further transaction is begun

	version  uint64    // of the destination, before the last look at its line
	drained  bool      // the last look found the line empty
	broken   bool      // the database failed
	sent     bool      // EDUs of ours were accepted
	suspects bool      // the destination's own failures count as refusals
	retryAt  time.Time // when the next refused EDU is due
	readmits uint64    // of the destination, when retryAt was read
}

// run sends until nothing is left or the time is over.
func (s *session) run() error {
	s.mu.Lock()
	s.retryAt, s.readmits = s.d.retryAt, s.d.readmits
	s.mu.Unlock()
	if s.d.undeleted {
		s.deleteSent()
	}
	for first := true; ; first = false {
		ours := s.take()
		// The host's part goes with the first EDUs, or right after them.
		with := s.pending && (!first || len(ours) == 0 || s.fit(ours))
		if with && !s.fit(ours) {
			ours = nil
		}
		if !with && len(ours) == 0 {
			if s.linger() {
				continue
			}
			break
		}
		if err := s.transact(with, ours); err != nil {
			if !with && !s.pending && !isEmpty(s.host) {
				return nil // the host's part has arrived; its next transaction will meet the failure
			}
			return err
		}
		if !s.pending && (s.broken || !s.Now().Before(s.until)) {
			return nil
		}
	}
	if s.broken {
		return nil
	}
	if err := s.retryRefused(); err != nil && isEmpty(s.host) {
		return err
	}
	return nil
}

// linger reports whether more EDUs came while it waited for them.
func (s *session) linger() bool {
	if !s.sent || s.broken || !s.Now().Before(s.until) {
		return false
	}
	timer := time.NewTimer(s.Linger)
	defer timer.Stop()
	select {
	case <-s.d.added:
		return true
	case <-timer.C:
	case <-s.ctx.Done():
	}
	return false
}

// transact sends EDUs of ours, and with them the host's part if it is to go along.
func (s *session) transact(with bool, ours []edu) error {
	part := gomatrixserverlib.Transaction{}
	if with {
		part, s.pending = s.host, false
	}
	err := s.attempt(part, ours)
	switch {
	case err == nil:
		s.done(ours)
	case len(ours) > 0 && isRefusal(err):
		err = s.isolate(part, ours, err)
	}
	if errors.Is(err, errNotRecorded) {
		return nil // no fault of the destination's
	}
	return err
}
