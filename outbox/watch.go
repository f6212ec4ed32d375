package outbox

import (
	"context"
	"time"
)

const (
	// tick is how often the watch goes through the destinations when nothing wakes it.
	tick = time.Second
	// rungForAtOnce bounds the destinations that are rung for at the same time. One that fails is none of
	// them, so that the others do not wait for it.
	rungForAtOnce = 64
	// askedAtOnce bounds those that are asked whether they are back. Each may take reachTimeout.
	askedAtOnce  = 64
	reachTimeout = 10 * time.Second
	// askedASecond bounds how many are asked in a second, so that names that do not exist, of which a user
	// may make up any number, take no more: 1,000 of them are asked within lookPause.
	askedASecond = 50
	// lookPause is how long a destination that can't be reached is left alone: messages are to be on
	// their way within a minute of its return.
	lookPause = 20 * time.Second
	// hintPause is the same for hintLife after a request of its own.
	hintPause = time.Second
	hintLife  = 10 * time.Second
	// soon is up to when the host's own next attempt is waited for.
	soon = 25 * time.Second
	// patience is how long a ring may go unheard; it grows with each.
	patience    = 5 * time.Second
	maxPatience = 30 * time.Second
	// ringTimeout bounds a ring.
	ringTimeout = 10 * time.Second
)

// watch looks after every destination for which something waits and nothing happens.
func (o *Outbox) watch() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-o.wake:
		case <-ticker.C:
		case <-o.running.Done():
			return
		}
		o.lookAround()
	}
}

func (o *Outbox) lookAround() {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.Now()
	for _, d := range o.destinations {
		if !o.needsCare(d, now) {
			continue
		}
		if d.failing || d.belled {
			if len(o.asking) < askedAtOnce && o.asks.AllowN(now, 1) {
				o.startLook(d, now, o.asking)
			}
		} else if len(o.ringing) < rungForAtOnce {
			o.startLook(d, now, o.ringing)
		}
	}
}

// startLook takes one of the places, of which one must be free. The caller has mu.
func (o *Outbox) startLook(d *destination, now time.Time, places chan struct{}) {
	places <- struct{}{} // filled under mu alone
	l := d.look(now)
	o.tasks.Go(func() {
		o.tend(l)
		o.tended(d)
		<-places
		o.wakeWatch() // others may be waiting for their turn
	})
}

// needsCare reports whether something waits for a destination while nobody works on it. The caller has mu.
func (o *Outbox) needsCare(d *destination, now time.Time) bool {
	due := d.waiting || isDue(d.retryAt, now)
	return due && d.busy == 0 && !d.tending && !o.stopping && !now.Before(d.lookAt)
}

func (d *destination) hintedAt(now time.Time) bool {
	return !d.hinted.IsZero() && now.Sub(d.hinted) < hintLife
}

// look is what was known of a destination when the watch began to look after it.
type look struct {
	d         *destination
	at        time.Time
	sends     uint64 // a Send that came since knows better
	failing   bool
	hinted    bool
	holdsBell bool
	unheard   int
}

// look begins one. The caller has mu.
func (d *destination) look(now time.Time) look {
	d.tending, d.lookedAt = true, now
	if d.belled {
		d.unheard++
	}
	return look{
		d: d, at: now, sends: d.sends, failing: d.failing || d.belled, hinted: d.hintedAt(now),
		holdsBell: d.holdsBell, unheard: d.unheard,
	}
}

// tend rings for a destination, unless the host leaves it alone: then it is asked whether it is back.
func (o *Outbox) tend(l look) {
	until, givenUp := o.Host.Backoff(l.d.name)
	wait := until.Sub(l.at)
	switch {
	case !l.failing && !givenUp && wait <= 0:
		o.ring(l)
	case !l.hinted && !givenUp && 0 < wait && wait < soon:
		o.lookAgain(l, wait+tick)
	case !l.failing:
		o.lookAgain(l, 0) // it takes its turn with the others that are asked
	case o.reach(l.d) != nil:
		o.lookAgain(l, lookPause)
	default:
		o.Host.Revive(l.d.name)
		if l.holdsBell && l.unheard == 0 {
			o.expect(l, patience)
		} else {
			o.ring(l)
		}
	}
}

func (o *Outbox) tended(d *destination) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d.tending = false
	o.forget(d)
}

func (o *Outbox) reach(d *destination) error {
	ctx, cancel := context.WithTimeout(o.running, reachTimeout)
	defer cancel()
	err := o.Host.Reach(ctx, d.name)
	if err != nil {
		o.note(d, err)
	}
	return err
}

func (o *Outbox) ring(l look) {
	ctx, cancel := context.WithTimeout(o.running, ringTimeout)
	defer cancel()
	// Before the ring: it may be heard before it has returned.
	if !o.expect(l, min(patience<<min(l.unheard, 4), maxPatience)) {
		return
	}
	if err := o.Host.Ring(ctx, l.d.name); err != nil {
		o.Log.WithError(err).WithField("destination", l.d.name).Debug("to_device: waking the federation sender failed, trying again")
		o.unring(l)
	}
}

// expect waits for a Send to come. It returns false if one came already.
func (o *Outbox) expect(l look, wait time.Duration) bool {
	return o.after(l, func(now time.Time) {
		l.d.belled = true
		l.d.lookAt = now.Add(wait)
	})
}

// unring follows a ring that failed.
func (o *Outbox) unring(l look) {
	o.after(l, func(now time.Time) {
		l.d.belled = false
		l.d.lookAt = now.Add(tick)
	})
}

// lookAgain leaves a destination alone for a while.
func (o *Outbox) lookAgain(l look, pause time.Duration) {
	o.after(l, func(now time.Time) {
		l.d.failing, l.d.belled = true, false
		if l.d.hintedAt(now) {
			pause = min(pause, hintPause)
		}
		l.d.lookAt = now.Add(pause)
	})
}

// after takes down what a look has led to, and returns true, unless a Send has come since.
func (o *Outbox) after(l look, f func(now time.Time)) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l.d.sends != l.sends {
		return false
	}
	f(o.Now())
	return true
}
