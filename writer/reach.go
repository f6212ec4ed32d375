package writer

import (
	"errors"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
)

// One commit of a submission holds up everybody's: 60 KB to all 20,000 devices that somebody had made took 12 seconds. These are
// more than any client sends on purpose, and take some 0.7 s.
const (
	maxCopies    = 10_000
	maxCopyBytes = 64 << 20
)

// ErrTooManyCopies is returned for messages that would reach more devices, or be more data in all their copies, than may be stored
// together. It takes an AllDevices of users with very many devices. Nothing was stored, and nothing will be.
var ErrTooManyCopies = errors.New("too many devices, or too much data in all their copies, for what is stored together")

// checkReach returns ErrTooManyCopies if a submission is larger than it may be. What is named device by device, each with a content
// of its own, is bounded by whoever read it.
func checkReach(s *Submission, messages []Message) error {
	copies, bytes := 0, 0
	for i := range s.Parts {
		copies += len(s.Parts[i].Copies)
		for j := range s.Parts[i].Copies {
			bytes += len(s.Parts[i].Copies[j].Content)
		}
	}
	if copies <= maxCopies && bytes <= maxCopyBytes {
		return nil
	}
	for i := range messages {
		for _, target := range messages[i].Targets {
			if target.DeviceID == devices.AllDevices {
				return ErrTooManyCopies
			}
		}
	}
	return nil
}
