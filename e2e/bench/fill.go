package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// backlog is a number of devices for which messages wait, and what sends them.
type backlog struct {
	senders []*device
	// names are what a request names: devices, or users with all that they have.
	names []*device
	// checked are the devices, among those named, at which it is checked what arrives. All are named in every request.
	checked []*device
	// last gets one message of each sender behind those of a fill, and shows when they are stored: a server may answer
	// before.
	last *device
	book *ledger
	mine []int // all of the checked
}

func newBacklog(senders, names, checked []*device, last *device) *backlog {
	f := &backlog{senders: senders, names: names, checked: checked, last: last, book: newLedger(len(senders), len(checked))}
	for i := range checked {
		f.mine = append(f.mine, i)
	}
	return f
}

// fill makes requests, all senders at once, until so many are accepted or the budget of time is spent. It returns how many
// were accepted, when all of them are stored.
func (f *backlog) fill(ctx context.Context, b *bench, requests int, budget time.Duration) (int, error) {
	start, told := time.Now(), atomic.Int64{}
	var taken, accepted atomic.Int64
	errs := make([]error, len(f.senders))
	var wait sync.WaitGroup
	for i, s := range f.senders {
		wait.Go(func() {
			var body bytes.Buffer
			for errs[i] == nil && time.Since(start) < budget && taken.Add(1) <= int64(requests) {
				if errs[i] = f.put(ctx, i, request(&body, f.book.next(i), f.names)); errs[i] == nil {
					done := accepted.Add(1)
					if second := int64(time.Since(start).Seconds()); second > 4 && second%5 == 0 && told.Swap(second) != second {
						b.progress.say("%d of %d requests", done, requests)
					}
				}
			}
			if errs[i] == nil {
				errs[i] = s.put(ctx, request(&body, mark{load: f.book.load, sender: i, seq: -1}, []*device{f.last}))
			}
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	return int(accepted.Load()), f.awaitStored(ctx, b)
}

func (f *backlog) put(ctx context.Context, sender int, body []byte) error {
	begun := f.book.now()
	err := f.senders[sender].put(ctx, body)
	f.book.sent(sender, sent{to: f.mine, due: begun, begun: begun, answered: f.book.now(), ok: err == nil})
	return err
}

func (f *backlog) awaitStored(ctx context.Context, b *bench) error {
	missing := len(f.senders)
	for end := time.Now().Add(b.storedWithin); missing > 0; {
		next, err := f.last.sync(ctx, f.last.since, time.Second, func(text string) {
			if m, ok := parseMark(text); ok && m.load == f.book.load {
				missing--
			}
		})
		if err != nil {
			return err
		}
		f.last.since = next
		if time.Now().After(end) {
			return fmt.Errorf("what was answered 200 is not stored %s later", b.storedWithin)
		}
	}
	return nil
}

// drain reads what waits for the checked devices, each from its token, and compares it with what was accepted. Beyond the budget of
// time it gives up, and checks nothing.
func (f *backlog) drain(ctx context.Context, b *bench, budget time.Duration) (w wrong, checked bool, err error) {
	const atOnce = 8
	start := time.Now()
	var late atomic.Bool
	errs := make([]error, atOnce)
	var wait sync.WaitGroup
	for part, devices := range slices.Collect(slices.Chunk(f.mine, max(1, (len(f.mine)+atOnce-1)/atOnce))) {
		wait.Go(func() {
			for _, i := range devices {
				for d, done := f.checked[i], false; !done && errs[part] == nil; {
					if late.Load() || time.Since(start) > budget {
						late.Store(true)
						return
					}
					var marks []string
					var next string
					next, errs[part] = d.sync(ctx, d.since, 0, func(m string) { marks = append(marks, m) })
					if errs[part] == nil {
						f.book.got(i, marks, f.book.now())
						done, d.since = next == d.since, next
					}
				}
			}
		})
	}
	wait.Wait()
	if err = errors.Join(errs...); err != nil {
		return wrong{}, false, err
	}
	if late.Load() {
		b.progress.say("gave up reading what waits after %s", budget)
		return wrong{}, false, nil
	}
	_, w = f.book.check()
	b.progress.say("%d messages read and checked in %s: %d wrong", f.book.arrived.Load(), time.Since(start).Round(time.Millisecond), w.total())
	return w, true, nil
}
