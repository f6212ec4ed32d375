package writer

import (
	"context"
	"errors"

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
	// same transaction submitted again is stored once, whatever became of this submission.
	ErrUnavailable = errors.New("the message could not be stored in time")
)

// Submission is one message for any number of devices, stored whole or not at all.
type Submission struct {
	Sender string
	Type   string
	// Copies names each device at most once. None is allowed: the transaction is recorded all the
	// same, so that its repetition finds the same devices.
	Copies []storage.Copy
	// Transaction, unless it is the zero key, is stored with the copies; a submission whose key is
	// stored already succeeds and stores nothing.
	Transaction types.TransactionKey
	// Current is asked right before the commit whether Copies is still what was meant; nil means
	// yes. It is called by the writer's goroutine and must not block.
	Current func() bool
}

// weight is what a submission counts against the bounds of the queue, in bytes. 256 stands for
// the IDs and the bookkeeping of a row.
func (s *Submission) weight() int64 {
	n := int64(256)
	for i := range s.Copies {
		n += 256 + int64(len(s.Copies[i].Content))
	}
	return n
}

// request is a submission on its way through the writer.
type request struct {
	Submission
	ctx    context.Context
	weight int64
	done   chan struct{} // closed once err is set
	err    error
}

func (r *request) answer(err error) {
	r.err = err
	close(r.done)
}

func (r *request) hasTransaction() bool {
	return r.Transaction != types.TransactionKey{}
}
