package trace

import (
	"errors"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// DefaultLimit is how many records a Result has at the most where the Query does not say.
	DefaultLimit = 1000
	// MaxLimit is how many it ever has.
	MaxLimit = 10_000
)

// Query says whose steps are wanted. What is empty is not asked for; of several all have to be met by one step of a message,
// and then all steps of that message are found, also those that do not have what was asked for.
type Query struct {
	// MessageID is an org.matrix.msgid.
	MessageID string
	// EDUID is the message_id of an EDU.
	EDUID string
	// Device is a recipient. Without a DeviceID it is all of the user's.
	Device types.Device
	Sender string // full user ID
	// Limit is how many records are returned, the newest: 1 to MaxLimit. Zero means DefaultLimit.
	Limit int
}

// Check returns an error that says what to do where Find would find nothing because of the query itself.
func (q Query) Check() error {
	switch {
	case q.Device.UserID == "" && q.Device.DeviceID != "":
		return errors.New("a device ID says nothing without its user ID: name both")
	case q.MessageID == "" && q.EDUID == "" && q.Device.UserID == "" && q.Sender == "":
		return errors.New("name at least one of org.matrix.msgid, message_id of an EDU, user ID of a recipient, and sender")
	case q.Limit < 0 || q.Limit > MaxLimit:
		return errors.New("the limit must be from 1 to 10000, or 0 for the default of 1000")
	}
	return nil
}

// Result is what Find found.
type Result struct {
	// Records are in the order in which they were recorded.
	Records []Record
	// More says that the limit left out older records.
	More bool
	// Since is from when on every step is known: since the start of the server, or if older records had to make room, since the
	// oldest record that is kept.
	Since time.Time
	// Overwritten says that older records had to make room.
	Overwritten bool
	// Capacity is how many records are kept at the most. Zero says that none are: the trace is switched off.
	Capacity int
}
