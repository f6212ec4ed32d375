package writer

import (
	"context"
	"errors"
	"fmt"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Message is one message before it is known which devices exist.
type Message struct {
	Sender  string
	Type    string
	Targets []devices.Target
	// Transaction is as in Submission.
	Transaction types.TransactionKey
}

// Sender resolves messages to devices and submits them, again and again until the devices are
// those that exist at the commit.
type Sender struct {
	Directory *devices.Directory
	Writer    *Writer
}

// Send returns nil once the message is durably stored for every target that exists, or was before.
// Its errors are those of Writer.Submit but for ErrStale; where the host can't say which devices
// exist it returns ErrUnavailable.
func (s *Sender) Send(ctx context.Context, m Message) error {
	for {
		resolution, err := s.Directory.Resolve(ctx, m.Targets)
		if err != nil {
			return fmt.Errorf("%w: looking up the devices: %w", ErrUnavailable, err)
		}
		err = s.Writer.Submit(ctx, Submission{
			Sender:      m.Sender,
			Type:        m.Type,
			Copies:      resolution.Copies,
			Transaction: m.Transaction,
			Current:     resolution.Current,
		})
		if !errors.Is(err, ErrStale) {
			return err
		}
	}
}
