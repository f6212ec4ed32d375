// Package trace answers the question behind every "Unable to decrypt": did the server get the message, and did it
// hand it over? It keeps the last steps of all messages in memory, never a content.
package trace

import (
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Step is what happened to a message.
type Step string

// The steps of a message, in about the order in which they come.
const (
	// Accepted: a client's request or another server's EDU names the recipient, and is about to be stored.
	Accepted Step = "accepted"
	// Repeated: it was stored before under its transaction ID or message_id, and is not stored again.
	Repeated Step = "repeated"
	// Stored: it is durable, at Position, in the queue of Recipient or in the line of Destination.
	Stored Step = "stored"
	// HandedOver: it was put into a /sync response, perhaps not for the first time.
	HandedOver Step = "handed_over"
	// Acknowledged: the recipient has everything up to and including Position; Count messages were deleted. A message that
	// was not handed over before is one of a sender whom the recipient ignores.
	Acknowledged Step = "acknowledged"
	// Sent: the destination has accepted the EDU.
	Sent Step = "sent"
	// Refused: the destination has refused the EDU, which stands aside until it is tried again.
	Refused Step = "refused"
	// SetAside: the destination has refused the EDU for the last time.
	SetAside Step = "set_aside"
	// Dropped: nobody will get it, for Reason. With a Position it is everything in the recipient's queue up to and
	// including it: Count messages.
	Dropped Step = "dropped"
	// Failed: it was not stored for now; who sent it was told to send it again.
	Failed Step = "failed"
)

// Reason says why a message was dropped. Metrics have it as a label.
type Reason string

// The reasons for which a message is dropped.
const (
	UnknownDevice   Reason = "unknown_device"   // the recipient does not exist
	InvalidUser     Reason = "invalid_user"     // the recipient's user ID is none, or can't have a queue
	NotFederating   Reason = "not_federating"   // the recipient is on another server, and federation is off
	DeviceDeleted   Reason = "device_deleted"   // the recipient was deleted, with its queue
	Purged          Reason = "purged"           // an administrator purged the queue
	Discarded       Reason = "discarded"        // an administrator discarded what its destination refused
	QueueFull       Reason = "queue_full"       // limits.queue_messages or limits.queue_bytes
	TooOld          Reason = "too_old"          // limits.queue_age
	KeyRequestRate  Reason = "key_request_rate" // limits.key_requests_per_second
	Malformed       Reason = "malformed"        // an EDU that is not what the specification describes
	Spoofed         Reason = "spoofed"          // an EDU whose sender is no user of its origin
	WithoutID       Reason = "no_message_id"    // an EDU without message_id
	TooLarge        Reason = "too_large"        // an EDU over the limit
	TooManyTargets  Reason = "too_many_recipients"
	DatabaseRefuses Reason = "database_refuses" // a message that the database will never take
)

// Record is one step of one message. What does not apply is empty.
type Record struct {
	At     time.Time
	Step   Step
	Reason Reason
	// Recipient is the local device that the message is for. A DeviceID of "*" means every device of the user.
	// For a user of another server it is set only for what was accepted or dropped.
	Recipient types.Device
	Sender    string // full user ID
	Type      string // event type
	// MessageID is the org.matrix.msgid of the content, by which clients log it.
	MessageID string
	// EDUID is the message_id of the EDU that it came or goes in.
	EDUID string
	// TransactionID is that of the client's request, for what was accepted from one of our own clients.
	TransactionID string
	// Origin is the server that it came from, Destination the one that it goes to.
	Origin, Destination string
	Position            types.Position
	// Count is how many messages the record stands for; zero means one.
	Count int
}

// Recorder takes records. It must not block, and is safe for concurrent use. The time of a record is set by it. It
// does not keep or change the slice.
type Recorder interface {
	Record(records ...Record)
}
