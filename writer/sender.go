package writer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Message is one message before it is known which devices exist.
type Message struct {
	Sender  string
	Type    string
	Targets []devices.Target
	// EDUs, Transaction, Remember and Traced are as in Part.
	EDUs        []storage.EDU
	Transaction types.TransactionKey
	Remember    time.Duration
	Traced      Traced
	// NoneDeleted reports whether the device that the transaction is of has certainly not been deleted since it was
	// authenticated; nil means that there is no such device. Once it says no the message is not stored any more: its
	// transaction would be remembered for the next device of that ID. It is called by several goroutines and must not block.
	NoneDeleted func() bool
}

var errSenderDeleted = errors.New("a device of the sender was deleted meanwhile")

func noneDeleted(messages []Message) bool {
	return !slices.ContainsFunc(messages, func(m Message) bool { return m.NoneDeleted != nil && !m.NoneDeleted() })
}

// Sender resolves messages to devices and submits them, again and again until the devices are
// those that exist at the commit.
type Sender struct {
	Directory *devices.Directory
	Writer    *Writer
}

// Send returns nil once the messages are durably stored, in their order, for every target that exists,
// or were before. They are stored together: after an error it is all of them or none. Its errors
// are those of Writer.Submit but for ErrStale, and ErrTooManyCopies; where the host can't say which devices exist, or a NoneDeleted says no, it
// returns ErrUnavailable.
func (s *Sender) Send(ctx context.Context, messages ...Message) error {
	for {
		if !noneDeleted(messages) {
			return fmt.Errorf("%w: %w", ErrUnavailable, errSenderDeleted)
		}
		submission, err := s.resolve(ctx, messages)
		if err != nil {
			return fmt.Errorf("%w: looking up the devices: %w", ErrUnavailable, err)
		}
		if err = checkReach(&submission, messages); err != nil {
			return err
		}
		if err = s.Writer.Submit(ctx, submission); !errors.Is(err, ErrStale) {
			return err
		}
	}
}

func (s *Sender) resolve(ctx context.Context, messages []Message) (Submission, error) {
	submission := Submission{Parts: make([]Part, 0, len(messages))}
	resolutions := make([]devices.Resolution, 0, len(messages))
	for _, m := range messages {
		resolution, err := s.Directory.Resolve(ctx, m.Targets)
		if err != nil {
			return Submission{}, err
		}
		resolutions = append(resolutions, resolution)
		traced := m.Traced
		if s.Writer.Trace != nil {
			traced.MessageIDs, traced.Dropped = resolution.MessageIDs, m.without(resolution.Missing)
		}
		submission.Parts = append(submission.Parts, Part{
			Sender:      m.Sender,
			Type:        m.Type,
			Copies:      resolution.Copies,
			EDUs:        m.EDUs,
			Transaction: m.Transaction,
			Remember:    m.Remember,
			Traced:      traced,
		})
	}
	submission.Current = func() bool {
		for _, r := range resolutions {
			if !r.Current() {
				return false
			}
		}
		return noneDeleted(messages)
	}
	return submission, nil
}
