package postgres

import "github.com/matrix-org/dendrite/todevicemodule/storage"

// Migrations are the SQL files.
var Migrations = migrations

// The statements whose plans the tests look at.
const (
	MessagesStatement       = messages
	MessagesExceptStatement = messagesExcept
	StoredStatement         = stored
	ForgetStatement         = forget
	AcknowledgeStatement    = acknowledge
	DestinationsStatement   = destinations
	WaitingStatement        = waiting
	SentStatement           = sent
	LeaveStatement          = leave
	RefusedStatement        = refused
	AcceptedStatement       = accepted
	UsersStatement          = users
	DevicesStatement        = devices
	RecordedStatement       = recorded
	ForgetDeviceStatement   = forgetDevice
	ExcessStatement         = excess
	TotalsStatement         = totals
	LinesStatement          = lines
	LineStatement           = line
	AsideStatement          = aside
	ReadmitStatement        = readmit
	DiscardStatement        = discard
)

// Those that are put together.
var (
	QueuesBySizeStatement = queuesBySize
	QueuesByAgeStatement  = queuesByAge
	CountsBySizeStatement = countsBySize
	CountsByAgeStatement  = countsByAge
	EnvelopesStatement    = envelopes
)

// CommitStatement returns the statement of a commit that has everything.
func CommitStatement() string {
	c := newCommit(storage.Batch{
		Deliveries: []storage.Delivery{{Copies: make([]storage.Copy, 1)}}, EDUs: make([]storage.EDU, 1),
	})
	return c.text.String()
}
