package writer

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var (
	// ErrStale is returned for a submission whose Current said no when it was about to be committed.
	// Nothing was stored.
	ErrStale = errors.New("the devices changed before the message was stored")

	// ErrStopped is returned once the writer has stopped. Nothing was stored.
	ErrStopped = errors.New("the server is stopping")

	// ErrUnavailable wraps the reason for which a submission could not be decided in its time: the
	// same transactions submitted again are stored once, whatever became of this submission.
	ErrUnavailable = errors.New("the message could not be stored in time")
)

// Submission is stored whole or not at all, but for the parts that were stored before.
type Submission struct {
	Parts []Part
	// Current is asked right before the commit whether the copies are still what was meant; nil
	// means yes. It is called by the writer's goroutine and must not block.
	Current func() bool
}

// Part is one message for any number of devices and servers.
type Part struct {
	Sender string
	Type   string
	// Copies names each local device at most once. None is allowed: the transaction is recorded all the
	// same, so that its repetition finds the same devices.
	Copies []storage.Copy
	// EDUs are for users of other servers, in the order in which they are to be sent. The writer
	// allots their positions.
	EDUs []storage.EDU
	// Transaction, unless it is the zero key, is stored with the message and kept for as long as
	// Remember says; a part whose key is stored already is passed over.
	Transaction types.TransactionKey
	Remember    time.Duration
	// Traced is for the trace alone.
	Traced Traced
}

func (p *Part) hasTransaction() bool {
	return p.Transaction != types.TransactionKey{}
}

func (p *Part) isAmong(stored map[types.TransactionKey]struct{}) bool {
	_, ok := stored[p.Transaction]
	return ok && p.hasTransaction()
}

// weight is what a submission counts against the bounds of the queue, in bytes. 256 stands for
// the IDs and the bookkeeping of a row.
func (s *Submission) weight() int64 {
	n := int64(256)
	for _, p := range s.Parts {
		n += 256
		for i := range p.Copies {
			n += 256 + int64(len(p.Copies[i].Content))
		}
		for i := range p.EDUs {
			n += 256 + int64(len(p.EDUs[i].Content))
		}
	}
	return n
}

// request is a submission on its way through the writer.
type request struct {
	Submission
	ctx    context.Context
	weight int64
	tried  bool          // a commit with it failed
	done   chan struct{} // closed once err is set
	err    error
}

func (r *request) answer(err error) {
	r.err = err
	close(r.done)
}

// doubtful reports whether the store may have to say that the request was stored before.
func (r *request) doubtful() bool { return r.tried || r.stale() }

func (r *request) stale() bool { return r.Current != nil && !r.Current() }

// without returns the request's parts whose transactions are not among those stored.
func (r *request) without(stored map[types.TransactionKey]struct{}) []Part {
	isStored := func(p Part) bool { return p.isAmong(stored) }
	if !slices.ContainsFunc(r.Parts, isStored) {
		return r.Parts
	}
	return slices.DeleteFunc(slices.Clone(r.Parts), isStored)
}
