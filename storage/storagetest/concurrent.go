package storagetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func concurrentTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"a batch is seen whole":        concurrentReaders,
		"one of two commits wins":      concurrentCommits,
		"claims are distinct":          concurrentClaims,
		"acknowledgements and commits": concurrentAcknowledge,
		"sending and commits":          concurrentSending,
		"sent by several":              concurrentSent,
	}
}

// concurrently runs the functions at once and returns when all have ended.
func concurrently(functions ...func() error) error {
	var group sync.WaitGroup
	errs := make([]error, len(functions))
	for i, function := range functions {
		group.Go(func() { errs[i] = function() })
	}
	group.Wait()
	return errors.Join(errs...)
}

func concurrentReaders(f *fixture) {
	const batches, perBatch = 30, 40
	done := make(chan struct{})
	write := func() error {
		defer close(done)
		last := f.last
		for range batches {
			batch := storage.Batch{Writer: f.writer, Previous: last, Last: last + perBatch}
			for i := range perBatch {
				d := delivery(`{}`, alice)
				d.Position = last + types.Position(i) + 1
				batch.Deliveries = append(batch.Deliveries, d)
			}
			if err := f.store.Commit(f.ctx, batch); err != nil {
				return err
			}
			last = batch.Last
		}
		return nil
	}
	read := func() error {
		for seen := 0; ; {
			ended := false
			select {
			case <-done:
				ended = true
			default:
			}
			messages, err := f.store.Messages(f.ctx, alice, 0, everLater, batches*perBatch+1, nil)
			if err != nil {
				return err
			}
			if len(messages)%perBatch != 0 || len(messages) < seen {
				return fmt.Errorf("saw %d messages after %d; a batch has %d", len(messages), seen, perBatch)
			}
			seen = len(messages)
			if ended {
				return nil
			}
		}
	}
	f.must(concurrently(write, read, read))
	if got := len(f.messages(alice)); got != batches*perBatch {
		f.Errorf("%d messages are there, want %d", got, batches*perBatch)
	}
}

func concurrentCommits(f *fixture) {
	stores := []storage.Store{f.store, f.open(f)}
	for range 20 {
		results := make([]error, len(stores))
		var commits []func() error
		for i, store := range stores {
			batch := f.batch([]storage.Delivery{delivery(fmt.Sprintf(`{"n":%d}`, i), alice)})
			commits = append(commits, func() error {
				results[i] = f.untilDecided(func() error { return store.Commit(f.ctx, batch) })
				return nil
			})
		}
		f.must(concurrently(commits...))
		winner := 0
		if results[0] != nil {
			winner = 1
		}
		f.must(results[winner])
		f.mustBe(results[1-winner], storage.ErrFenced)
		f.last++
		queue := f.messages(alice)
		if got := queue[len(queue)-1]; string(got.Content) != fmt.Sprintf(`{"n":%d}`, winner) {
			f.Errorf("the last message is %s after %d won", got.Content, winner)
		}
	}
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

// untilDecided repeats what was lost to another process's lock on the database.
func (f *fixture) untilDecided(call func() error) error {
	for {
		err := call()
		if !errors.Is(err, storage.ErrTransient) || f.ctx.Err() != nil {
			return err
		}
	}
}

func concurrentClaims(f *fixture) {
	stores := []storage.Store{f.store, f.open(f)}
	var mutex sync.Mutex
	seen := map[types.Position]bool{f.last: true}
	var claims []func() error
	for i := range 16 {
		claims = append(claims, func() error {
			return f.untilDecided(func() error {
				last, err := stores[i%2].Claim(f.ctx, fmt.Sprint(i), 0)
				if err != nil {
					return err
				}
				mutex.Lock()
				defer mutex.Unlock()
				if seen[last] {
					return fmt.Errorf("two claims got %d", last)
				}
				seen[last] = true
				return nil
			})
		})
	}
	f.must(concurrently(claims...))
}

func concurrentAcknowledge(f *fixture) {
	devices := []types.Device{alice, bob, {UserID: alice.UserID, DeviceID: "TABLET"}}
	const rounds = 100
	done := make(chan struct{})
	send := func() error {
		defer close(done)
		last := f.last
		for range rounds {
			d := delivery(`{}`, devices...)
			d.Position = last + 1
			batch := storage.Batch{Writer: f.writer, Previous: last, Last: last + 3, Deliveries: []storage.Delivery{d}}
			if err := f.store.Commit(f.ctx, batch); err != nil {
				return err
			}
			last = batch.Last
		}
		f.last = last
		return nil
	}
	var acknowledged atomic.Int64
	acknowledge := func() error {
		all := []storage.Acknowledgement{through(devices[2], everLater), through(devices[0], everLater), through(devices[1], everLater)}
		for ended := false; ; {
			left, err := f.store.Acknowledge(f.ctx, all, 2)
			if err != nil {
				return err
			}
			for _, a := range left {
				acknowledged.Add(int64(a.Deleted))
			}
			if ended && len(left) == 0 {
				return nil
			}
			select {
			case <-done:
				ended = true
			default:
			}
		}
	}
	f.must(concurrently(send, acknowledge, acknowledge, acknowledge))
	if got := acknowledged.Load(); got != rounds*int64(len(devices)) {
		f.Errorf("%d messages were deleted, want each of %d once", got, rounds*len(devices))
	}
	for _, device := range devices {
		f.wantMessages(device, nil)
	}
}

// Each line is sent and refused from its front while its end grows.
func concurrentSending(f *fixture) {
	names := []string{remote, elsewhere}
	committed, taken := map[string][]storage.EDU{}, make([][]storage.EDU, len(names))
	done := make(chan struct{})
	send := func() error {
		defer close(done)
		for n := range 100 {
			batch := f.eduBatch(edu(remote, fmt.Sprint(3*n)), edu(elsewhere, fmt.Sprint(3*n+1)), edu(remote, fmt.Sprint(3*n+2)))
			if err := f.store.Commit(f.ctx, batch); err != nil {
				return err
			}
			f.last = batch.Last
			for _, e := range batch.EDUs {
				committed[e.Destination] = append(committed[e.Destination], e)
			}
		}
		return nil
	}
	take := func(i int) error {
		for ended := false; ; {
			edus, err := f.store.Waiting(f.ctx, names[i], 0, everLater, 7, 1<<20)
			if err != nil {
				return err
			}
			if ended && len(edus) == 0 {
				return nil
			}
			select {
			case <-done:
				ended = true
			default:
			}
			if len(edus) == 0 {
				continue
			}
			taken[i] = append(taken[i], edus...)
			if err = f.store.Refuse(f.ctx, storage.Refusal{EDU: edus[0], RetryAt: moment(int64(len(taken[i])))}); err != nil {
				return err
			}
			if _, err = f.store.Destinations(f.ctx); err != nil {
				return err
			}
			if err = f.store.Sent(f.ctx, names[i], edus[len(edus)-1].Position); err != nil {
				return err
			}
		}
	}
	f.must(concurrently(send, func() error { return take(0) }, func() error { return take(1) }))
	for i, name := range names {
		f.sameEDUs(taken[i], committed[name])
		f.wantLine(name, nil)
	}
}

// Sent may not return while something is left that another call is about to delete.
func concurrentSent(f *fixture) {
	stores := []storage.Store{f.store, f.open(f)}
	for range 3 {
		line := f.queue(remote, 2500)
		var calls []func() error
		for i := range 4 {
			calls = append(calls, func() error {
				return f.untilDecided(func() error {
					if err := stores[i%2].Sent(f.ctx, remote, line[len(line)-1-i].Position); err != nil {
						return err
					}
					left, err := stores[i%2].Waiting(f.ctx, remote, 0, line[len(line)-1-i].Position, 1, 1)
					if err == nil && len(left) > 0 {
						err = fmt.Errorf("something is left of what was sent")
					}
					return err
				})
			})
		}
		f.must(concurrently(calls...))
		f.wantLine(remote, nil)
	}
}
