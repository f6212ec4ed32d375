package writer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	firstPause   = 20 * time.Millisecond
	longestPause = time.Second
)

// process answers every one of the requests. While the database is away it tries again for as
// long as somebody waits for one of them.
func (w *Writer) process(requests []*request) {
	for _, r := range requests {
		defer w.room.Release(r.weight)
	}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		var err error
		if requests, err = w.attempt(stillAwaited(requests)); len(requests) == 0 {
			return
		}
		w.Log.WithError(err).WithField("requests", len(requests)).Warn("to_device: storing messages failed, trying again")
		if !w.sleep(pause) {
			answerAll(requests, fmt.Errorf("%w: the server is stopping: %w", ErrUnavailable, err))
			return
		}
	}
}

// stillAwaited drops the requests that nobody waits for any more.
func stillAwaited(requests []*request) []*request {
	var awaited []*request
	for _, r := range requests {
		if err := r.ctx.Err(); err != nil {
			r.answer(fmt.Errorf("%w: %w", ErrUnavailable, err))
		} else {
			awaited = append(awaited, r)
		}
	}
	return awaited
}

func answerAll(requests []*request, err error) {
	for _, r := range requests {
		r.answer(err)
	}
}

// sleep returns false if the writer has to give up instead.
func (w *Writer) sleep(pause time.Duration) bool {
	// The spread keeps servers that lost one database from coming back all at once.
	timer := time.NewTimer(pause/2 + rand.N(pause))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.running.Done():
		return false
	}
}

// attempt tries once to carry the requests out, and returns those that are worth another try with
// the reason. Hardly ever is a transaction stored before, so which are is asked only once a commit has failed, or where a request
// is stale: what was stored is answered so, whatever became of its devices.
func (w *Writer) attempt(requests []*request) ([]*request, error) {
	w.dropNotes() // of an attempt that failed
	if !slices.ContainsFunc(requests, (*request).doubtful) {
		return w.store(w.answerStored(requests, nil), nil) // a request without parts has nothing to store
	}
	stored, err := w.stored(requests)
	if err != nil {
		w.observeFailure(len(requests), err)
		return w.failed(requests, err)
	}
	return w.store(answerStale(w.answerStored(requests, stored)), stored)
}

// store commits what is not among those stored, and returns what attempt does.
func (w *Writer) store(requests []*request, stored map[types.TransactionKey]struct{}) ([]*request, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	batch := w.newBatch(requests, stored)
	err := w.commit(requests, batch)
	if err == nil {
		w.tell()
		w.publish(batch)
		answerAll(requests, nil)
		return nil, nil
	}
	first := !requests[0].tried
	for _, r := range requests {
		r.tried = true
	}
	switch {
	case w.running.Err() != nil: // what became of the batch may not be known
		answerAll(requests, fmt.Errorf("%w: the server is stopping: %w", ErrUnavailable, err))
		return nil, nil
	case first && (errors.Is(err, storage.ErrStored) || len(requests) == 1 && !isAway(err)):
		return w.attempt(requests)
	default:
		return w.failed(requests, err)
	}
}

// isAway reports whether an error is about a database that is away, and not about what it was asked.
func isAway(err error) bool {
	return errors.Is(err, storage.ErrTransient) && !errors.Is(err, storage.ErrFault)
}

// failed returns the requests for another try while the database is away. What a database that is there fails at is
// answered, each by itself: the others must not wait until a fault is mended.
func (w *Writer) failed(requests []*request, err error) ([]*request, error) {
	switch {
	case isAway(err):
		return requests, err
	case len(requests) > 1:
		return w.attemptEach(requests)
	}
	answerAll(requests, err)
	return nil, nil
}

// attemptEach commits requests one by one after the database refused them or failed at them together, so that the
// one it can't store does not take the others with it.
func (w *Writer) attemptEach(requests []*request) (again []*request, err error) {
	for _, r := range requests {
		rest, restErr := w.attempt([]*request{r})
		if again = append(again, rest...); restErr != nil {
			err = restErr
		}
	}
	return again, err
}

// stored returns those of the requests' transactions that are stored.
func (w *Writer) stored(requests []*request) (map[types.TransactionKey]struct{}, error) {
	var keys []types.TransactionKey
	for _, r := range requests {
		for i := range r.Parts {
			if r.Parts[i].hasTransaction() {
				keys = append(keys, r.Parts[i].Transaction)
			}
		}
	}
	if len(keys) == 0 {
		return map[types.TransactionKey]struct{}{}, nil
	}
	ctx, cancel := context.WithTimeout(w.running, w.AttemptTimeout)
	defer cancel()
	return w.Store.Stored(ctx, keys)
}

// answerStored answers the requests of which every part is stored and returns the others.
func (w *Writer) answerStored(requests []*request, stored map[types.TransactionKey]struct{}) []*request {
	var fresh []*request
	for _, r := range requests {
		if len(r.without(stored)) == 0 {
			w.noteStoredBefore(r, stored)
			w.tell()
			r.answer(nil)
		} else {
			fresh = append(fresh, r)
		}
	}
	return fresh
}

func answerStale(requests []*request) []*request {
	var current []*request
	for _, r := range requests {
		if r.stale() {
			r.answer(ErrStale)
		} else {
			current = append(current, r)
		}
	}
	return current
}

// newBatch passes over the parts that are stored, and the repetitions of a transaction within the
// batch, which share what becomes of the first.
func (w *Writer) newBatch(requests []*request, stored map[types.TransactionKey]struct{}) storage.Batch {
	batch := storage.Batch{Writer: w.id, Previous: w.previous}
	now, before := w.latest(), w.allocated
	taken := make(map[types.TransactionKey]struct{})
	for _, r := range requests {
		w.noteStoredBefore(r, stored)
		fresh := r.without(stored)
		for i := range fresh {
			p := &fresh[i]
			if p.hasTransaction() {
				if _, repeated := taken[p.Transaction]; repeated {
					w.noteRepeated(p)
					continue
				}
				taken[p.Transaction] = struct{}{}
				batch.Transactions = append(batch.Transactions,
					storage.Transaction{TransactionKey: p.Transaction, ExpiresAt: now.Add(p.Remember)})
			}
			var first types.Position
			if len(p.Copies) > 0 {
				first = w.nextPositions(len(p.Copies))
				batch.Deliveries = append(batch.Deliveries, storage.Delivery{
					Position: first, Sender: p.Sender, Type: p.Type, Copies: p.Copies,
				})
			}
			edus := len(batch.EDUs)
			for _, edu := range p.EDUs {
				edu.Position = w.nextPositions(1)
				batch.EDUs = append(batch.EDUs, edu)
			}
			w.noteStored(p, first, batch.EDUs[edus:])
		}
	}
	if w.allocated == before {
		w.nextPositions(1) // every commit leaves a position of its own, by which settle knows it
	}
	batch.Last = w.allocated
	return batch
}

// commit returns nil if the batch is stored. After an error it is known that the batch is not stored and
// never will be, unless the writer had to give up: then nothing is known, and the error is
// ErrUnavailable.
func (w *Writer) commit(requests []*request, batch storage.Batch) error {
	ctx, cancel := context.WithTimeout(w.running, w.AttemptTimeout)
	defer cancel()
	started := time.Now()
	err := w.Store.Commit(ctx, batch)
	if errors.Is(err, storage.ErrTransient) || errors.Is(err, storage.ErrFenced) {
		err = w.settle(batch, err)
	}
	if err == nil {
		w.previous = batch.Last
	}
	if errors.Is(err, storage.ErrStored) { // the database did what it was asked
		return err
	}
	w.Observe(Commit{
		Requests: len(requests), Copies: countCopies(batch), EDUs: len(batch.EDUs), Duration: time.Since(started), Err: err,
	})
	return err
}

// observeFailure tells of an attempt that the database failed before or after the commit itself, unless the writer gave it up.
func (w *Writer) observeFailure(requests int, err error) {
	if w.running.Err() == nil {
		w.Observe(Commit{Requests: requests, Err: err})
	}
}

func countCopies(batch storage.Batch) (n int) {
	for i := range batch.Deliveries {
		n += len(batch.Deliveries[i].Copies)
	}
	return n
}

// settle finds out what became of a commit that did not answer: it asks the position record, for as
// long as it takes, since nothing else may be committed before that is known. It returns nil if
// the batch is stored, or the cause as a transient error if it is not.
func (w *Writer) settle(batch storage.Batch, cause error) error {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		stored, err := w.inspect(batch)
		switch {
		case err == nil && stored:
			return nil
		case err == nil:
			return fmt.Errorf("%w: %w", storage.ErrTransient, cause)
		}
		w.observeFailure(0, err)
		w.Log.WithError(err).Warn("to_device: asking the database what became of a commit failed, trying again")
		if !w.sleep(pause) {
			return fmt.Errorf("%w: the server is stopping: %w", ErrUnavailable, err)
		}
	}
}

// inspect reports whether the batch is stored, and puts the writer back in charge of the position
// record where it is not: an error means that this can't be said, or done, now.
func (w *Writer) inspect(batch storage.Batch) (stored bool, err error) {
	ctx, cancel := context.WithTimeout(w.running, w.AttemptTimeout)
	defer cancel()
	if err = w.lock.Check(ctx); err != nil {
		return false, err
	}
	state, err := w.Store.State(ctx)
	if err != nil {
		return false, err
	}
	switch state {
	case storage.State{Writer: w.id, Last: batch.Last}:
		return true, nil
	case storage.State{Writer: w.id, Last: batch.Previous}:
		return false, nil
	}
	// The lock is ours, so no other process is at work: the database was restored from a backup, or
	// another process had the lock for a while.
	w.Log.WithField("last", state.Last).Warn("to_device: the position record was changed by somebody else, taking it over")
	last, err := w.Store.Claim(ctx, w.id, max(w.allocated, w.now()))
	if err != nil {
		return false, err
	}
	w.previous, w.allocated = last, last
	return false, nil
}

// publish makes the batch visible, wakes its devices and tells of its EDUs.
func (w *Writer) publish(batch storage.Batch) {
	w.Committed(batch)
	w.published.Store(int64(batch.Last))
	var wakeups []Wakeup
	index := make(map[string]int)
	for _, delivery := range batch.Deliveries {
		for _, c := range delivery.Copies {
			i, ok := index[c.UserID]
			if !ok {
				i = len(wakeups)
				index[c.UserID] = i
				wakeups = append(wakeups, Wakeup{UserID: c.UserID})
			}
			wakeups[i].DeviceIDs = append(wakeups[i].DeviceIDs, c.DeviceID)
		}
	}
	if len(wakeups) > 0 {
		w.Wake(batch.Last, wakeups)
	}
	if len(batch.EDUs) > 0 {
		w.Outgoing(batch.EDUs)
	}
}
