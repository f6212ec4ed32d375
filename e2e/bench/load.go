package main

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// load is a number of devices that send to others, which wait for it in long polls.
type load struct {
	senders, receivers []*device
	// devices is how many receivers one request names.
	devices int
	// rate is how many requests a second all senders make together, each at a time that is fixed beforehand. 0 lets each
	// make its next one when it has the answer to the one before.
	rate float64
	// window is how many copies may be on their way before the senders wait. 0 is no bound. It is for loads without a rate.
	window int64
	// behind is how many copies may be on their way before the load gives up, since the server does not carry its rate. 0 is no
	// bound.
	behind int64
	// Requests are made for warmUp and then for length, which alone is counted.
	warmUp, length time.Duration
	// patience is how long after the last request messages may still arrive.
	patience time.Duration
}

// run sends, waits until everything has arrived and returns what was found.
func (l *load) run(ctx context.Context) (*outcome, error) {
	book := newLedger(len(l.senders), len(l.receivers))
	for _, r := range l.receivers {
		if err := r.settle(ctx, nil); err != nil {
			return nil, err
		}
	}
	book.start = time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(l.receivers))
	var senders, receivers sync.WaitGroup
	for i, r := range l.receivers {
		receivers.Go(func() { errs[i] = receive(ctx, book, i, r) })
	}
	var gaveUp atomic.Int64
	refusals := make([]refused, len(l.senders))
	for i, s := range l.senders {
		senders.Go(func() { refusals[i] = l.send(ctx, book, i, s, &gaveUp) })
	}
	senders.Wait()
	l.await(ctx, book)
	cancel()
	receivers.Wait()
	err := errors.Join(errs...)
	for i, r := range l.receivers { // acknowledges, and shows what comes twice
		err = errors.Join(err, r.settle(context.WithoutCancel(ctx), func(m string) { book.got(i, []string{m}, book.now()) }))
	}
	out := newOutcome(book, l.warmUp, l.length, time.Duration(gaveUp.Load()))
	out.offered = l.rate * float64(max(1, l.devices))
	for _, r := range refusals {
		out.Refused += r.count
		if r.err != nil {
			out.Refusal = r.err.Error()
		}
	}
	return out, err
}

// refused is what a sender was not answered 200 for.
type refused struct {
	count int
	err   error // the last
}

func (l *load) send(ctx context.Context, book *ledger, i int, s *device, gaveUp *atomic.Int64) (r refused) {
	var body bytes.Buffer
	end := l.warmUp + l.length
	names := make([]*device, 0, l.devices)
	for n := 0; ctx.Err() == nil; n++ {
		due := book.now()
		if l.rate > 0 {
			due = time.Duration(float64(n*len(l.senders)+i) / l.rate * float64(time.Second))
		}
		if due >= end {
			return r
		}
		if !l.waitFor(ctx, book, due, end) || gaveUp.Load() > 0 {
			return r
		}
		if l.behind > 0 && book.onTheWay() > l.behind {
			gaveUp.CompareAndSwap(0, int64(book.now()))
			return r
		}
		to := make([]int, max(1, l.devices))
		names = names[:0]
		for k := range to {
			to[k] = (i + n + k) % len(l.receivers)
			names = append(names, l.receivers[to[k]])
		}
		data := request(&body, book.next(i), names)
		begun := book.now()
		if l.rate == 0 {
			due = begun
		}
		err := s.put(ctx, data)
		if ctx.Err() != nil {
			return r
		}
		book.sent(i, sent{to: to, due: due, begun: begun, answered: book.now(), ok: err == nil})
		if err != nil {
			r.count, r.err = r.count+1, err
		}
	}
	return r
}

// waitFor waits until a request may be made, and tells whether it is still to be made.
func (l *load) waitFor(ctx context.Context, book *ledger, due, end time.Duration) bool {
	if wait := due - book.now(); wait > 0 && !sleep(ctx, wait) {
		return false
	}
	for l.window > 0 && book.onTheWay() > l.window {
		if !sleep(ctx, time.Millisecond) || book.now() >= end {
			return false
		}
	}
	return true
}

// await waits until everything that was accepted has arrived, or for the patience of the load.
func (l *load) await(ctx context.Context, book *ledger) {
	for end := time.Now().Add(l.patience); time.Now().Before(end); {
		if book.onTheWay() <= 0 {
			if _, w := book.check(); w.Lost == 0 {
				return
			}
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return
		}
	}
}

// receive follows the tokens of a device until the context ends.
func receive(ctx context.Context, book *ledger, i int, r *device) error {
	var marks []string
	for {
		marks = marks[:0]
		next, err := r.sync(ctx, r.since, longPoll, func(m string) { marks = append(marks, m) })
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		book.got(i, marks, book.now())
		r.since = next
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
