// Package storage is the contract between the module and the database it keeps its messages in.
//
// PostgreSQL and SQLite implement it in the packages below this one; a further database joins by
// passing storagetest.Run.
package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var (
	// ErrFenced says that the position row is no longer as the caller left it: its own commit was
	// carried out after all although its answer was lost, the database was restored under a running
	// process, or another process claimed the store. State tells which. Nothing was stored.
	ErrFenced = errors.New("the position record was changed by another commit")

	// ErrStored is returned by Commit where a transaction of the batch has a record already. Nothing was stored. Stored
	// tells which it is.
	ErrStored = errors.New("a transaction of the batch is stored already")

	// ErrLocked is returned by Lock while another process holds the store.
	ErrLocked = errors.New("another process writes send-to-device messages to this database")

	// ErrTransient wraps every database error that the same call may outlive: a lost connection, a
	// server that restarts or is full, a serialisation failure, a busy SQLite file. After a
	// transient error of Commit it is unknown whether the commit was carried out; State tells.
	ErrTransient = errors.New("the database can't answer now")

	// ErrFault wraps the transient errors of a database that is there and fails all the same: an index is corrupt, a
	// table is missing, a limit of its own is met. It says nothing of the values. A fault may meet one row and spare the others,
	// so nothing else should wait until it is mended.
	ErrFault = fmt.Errorf("%w, or fails at this alone", ErrTransient)
)

// MaxKeyBytes is how long the user ID, device ID, event type and transaction ID of one record may
// be together: a PostgreSQL index takes 2,704 bytes a row.
const MaxKeyBytes = 2048

// Storable reports whether a device can have a queue: its IDs are text that every database takes, and
// leave room within MaxKeyBytes for an event type and a transaction ID of 255 bytes each. Hosts may
// let clients choose other device IDs; those devices get no messages, and hold nobody else's up.
func Storable(device types.Device) bool {
	const room = MaxKeyBytes - 2*255
	ids := device.UserID + device.DeviceID
	return len(ids) <= room && utf8.ValidString(ids) && !strings.ContainsRune(ids, 0)
}

// Delivery is one message on its way into the queues of one or more devices; a device appears at most
// once. The first copy has the delivery's position, and each further one the next, so that no two messages in the
// store share a position.
type Delivery struct {
	Position types.Position
	Sender   string
	Type     string
	Copies   []Copy
}

// Copy is the content of a Delivery for one device.
type Copy struct {
	types.Device
	Content []byte // a JSON object
}

// Transaction is the record that a client's request, an EDU or an entry of the host's stream was
// carried out.
type Transaction struct {
	types.TransactionKey
	// ExpiresAt is when the record may be forgotten.
	ExpiresAt time.Time
}

// EDU is one m.direct_to_device EDU that waits for another server (server-server API,
// "Send-to-device messaging").
type EDU struct {
	// Destination is the name of the server that it is for.
	Destination string
	// Position orders the EDUs for one destination. No two of them share it.
	Position types.Position
	// Origin is the local server name that it is sent from: the sender's.
	Origin string
	// MessageID is the message_id inside of Content, for whoever looks at the row.
	MessageID string
	// Content is the EDU's content, canonical JSON.
	Content []byte
}

// Refusal is an EDU that its destination refused, out of the line of those that wait.
type Refusal struct {
	EDU
	// Attempts is how often it was refused.
	Attempts int
	// RetryAt is when it is to be sent again, to the microsecond; the zero time means never: it was set
	// aside.
	RetryAt time.Time
	// Answer is what the destination answered last. It may be anything: its first 1,024 bytes are kept, and
	// what is no text in them is replaced.
	Answer string
}

// Destination is a server for which EDUs are kept.
type Destination struct {
	Name string
	// Waiting says that EDUs wait in line.
	Waiting bool
	// RetryAt is when the first refused EDU is to be sent again; the zero time means none is.
	RetryAt time.Time
}

// Batch is what one commit stores: all of it or nothing.
type Batch struct {
	// Writer is the identity given to Claim.
	Writer string
	// Previous is the position that the last commit, or Claim, left behind.
	Previous types.Position
	// Last is the position this commit leaves behind, larger than Previous and at least as large as
	// every position in Deliveries and EDUs.
	Last types.Position
	// Deliveries may be empty, in which case the commit stores the transactions alone.
	Deliveries []Delivery
	// EDUs are added to the lines of their destinations.
	EDUs []EDU
	// Transactions must not be stored yet.
	Transactions []Transaction
}

// State is the position record: who claimed the store last, and the last position that a
// commit left behind.
type State struct {
	Writer string
	Last   types.Position
}

// Acknowledgement says that a device has everything up to and including Through.
type Acknowledgement struct {
	types.Device
	Through types.Position
}

// Acknowledged is what came of an Acknowledgement.
type Acknowledged struct {
	Acknowledgement
	// Deleted is how many messages were deleted. It is zero only if another call deleted them at the same moment, and
	// there may be more.
	Deleted int
	// Unfinished says that there may be more to delete.
	Unfinished bool
}

// Lock is held by the one process that writes to a store.
type Lock interface {
	// Check returns nil while the lock is certainly held, having taken it again if its connection was
	// lost in between. It returns ErrLocked if another process has it now, or a transient error.
	Check(ctx context.Context) error
	// Release gives the lock up. It is safe to call more than once.
	Release() error
}

// Store keeps messages, transaction records and the position record. All methods may be called
// at any time from any goroutine, but Claim and Commit only by the holder of Lock.
//
// Errors wrap ErrTransient where trying again makes sense; every other error is final for that
// call: the database, or the store before it, refuses the values. An error that the store does not know counts as a fault
// of the database's. No error names the content of a message.
type Store interface {
	// Migrate brings the tables up to date. It is idempotent, and what it did is recorded in the
	// database.
	Migrate(ctx context.Context) error

	// Lock takes the lock that keeps a second writing process out. It does not wait: it returns
	// ErrLocked if another process has it.
	Lock(ctx context.Context) (Lock, error)

	// Claim makes writer the only identity whose commits are accepted from now on, and moves the
	// last position to at least atLeast and beyond its old value. It returns the new last position.
	Claim(ctx context.Context, writer string, atLeast types.Position) (types.Position, error)

	// State returns the position record once every commit that had reached the database has ended:
	// it waits for a commit whose connection was lost half way. Before the first Claim it returns the
	// zero State.
	State(ctx context.Context) (State, error)

	// Commit stores the batch in one transaction and durably, or returns an error. It returns
	// ErrFenced, having stored nothing, unless the position record is {Writer, Previous}, and otherwise ErrStored, having
	// stored nothing, if one of the transactions is there already or is in the batch twice. Any other error that is not transient means that this
	// batch can never be stored: a message or EDU is there already, an ID is longer than
	// MaxKeyBytes, a destination is empty or longer than 255 bytes, or text is not UTF-8 or holds NUL.
	Commit(ctx context.Context, batch Batch) error

	// Stored returns those of the keys that have a transaction record, expired or not. Absence is no error.
	Stored(ctx context.Context, keys []types.TransactionKey) (map[types.TransactionKey]struct{}, error)

	// Messages returns the first limit messages of a device with after < position <= through, by
	// position. Messages from the senders in except are passed over as if they were not there.
	// An empty queue, an unknown device and an empty range return no messages and no error.
	Messages(ctx context.Context, device types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error)

	// Acknowledge deletes what the acknowledgements cover, at most limit messages for each of them, at least
	// one, and returns those for which it deleted any or which are Unfinished. Without an error every other one is
	// done. Of several for one device the furthest counts.
	Acknowledge(ctx context.Context, acknowledgements []Acknowledgement, limit int) ([]Acknowledged, error)

	// ForgetTransactions deletes at most limit transaction records that expire before the given time,
	// the first to expire first, and returns how many.
	ForgetTransactions(ctx context.Context, before time.Time, limit int) (int, error)

	Outbox
	Cleaner
	Inspector
	Mover
}

// Cleaner deletes what nobody will ask for. Its methods may be called at any time from any goroutine. They work in
// short transactions; after an error some of it may be done, and the same call again goes on.
type Cleaner interface {
	// Users returns the first limit local users after the given one for whom messages or transaction records are kept,
	// in an order of the store's own. The empty string comes before all of them.
	Users(ctx context.Context, after string, limit int) ([]string, error)

	// Devices returns the IDs of a user's devices for which messages or transaction records are kept, in any order.
	Devices(ctx context.Context, userID string) ([]string, error)

	// Purge deletes a device's messages up to and including through, and returns how many there were.
	Purge(ctx context.Context, device types.Device, through types.Position) (int, error)

	// Forget deletes a device's transaction records.
	Forget(ctx context.Context, device types.Device) error

	// Excess returns the position up to and including which a device's oldest messages have to be purged so that at most
	// messages of them, with contents of at most bytes bytes together, are left; zero if none has to. A
	// limit of zero is none. The newest message is never in excess.
	Excess(ctx context.Context, device types.Device, messages int, bytes int64) (types.Position, error)
}

// Queue is what waits for one device.
type Queue struct {
	types.Device
	Messages int
	// Bytes is the size of the contents.
	Bytes int64
	// Oldest and Newest are the positions of the first and the last message.
	Oldest, Newest types.Position
}

// Order is an order of queues.
type Order int

// The orders of queues. Equal ones come in the order of user ID and device ID.
const (
	BySize Order = iota // the most messages first
	ByAge               // the oldest message first
)

// Envelope is a waiting message without its content.
type Envelope struct {
	Position types.Position
	Sender   string
	Type     string
	// MessageID is the org.matrix.msgid of the content, or empty.
	MessageID string
	// Bytes is the size of the content.
	Bytes int
}

// Line is what is kept for another server.
type Line struct {
	Destination string
	// Waiting is how many EDUs wait in line, and Bytes the size of their contents.
	Waiting int
	Bytes   int64
	// Oldest is the position of the first EDU in line; zero if there is none.
	Oldest types.Position
	// Refused is how many EDUs stand aside until they are tried again, SetAside how many do for good.
	Refused, SetAside int
}

// Totals is what a store holds.
type Totals struct {
	Queues   int // devices with messages
	Messages int
	// Oldest is the position of the oldest message; zero if there is none.
	Oldest types.Position
	// Outbox sums up the lines of all destinations; its Destination is empty.
	Outbox Line
}

// Inspector tells an operator what is kept. Its methods may be called at any time from any goroutine. Their work may grow with
// what is kept, so they are for operators and for a look once in a while; none of them reads all contents.
type Inspector interface {
	// Totals sums up the store.
	Totals(ctx context.Context) (Totals, error)

	// Queues returns the first limit queues after the given one, which need not be there any more: nil begins. Queues that
	// change between two calls may be missed or come again.
	Queues(ctx context.Context, order Order, after *Queue, limit int) ([]Queue, error)

	// CountQueues is Queues without Bytes, which it leaves zero. It doesn't touch the messages themselves: on SQLite a long
	// look holds up commits.
	CountQueues(ctx context.Context, order Order, after *Queue, limit int) ([]Queue, error)

	// Envelopes returns the first limit messages of a device after a position, by position.
	Envelopes(ctx context.Context, device types.Device, after types.Position, limit int) ([]Envelope, error)

	// Lines returns what is kept for the first limit destinations after the given one, in an order of the store's own; those of
	// which all was set aside too.
	Lines(ctx context.Context, after string, limit int) ([]Line, error)

	// Line returns what is kept for one destination; the zero counts if nothing is.
	Line(ctx context.Context, destination string) (Line, error)

	// Aside returns the first limit EDUs of a destination after a position that stand aside, by position, those set aside for
	// good included, without their contents.
	Aside(ctx context.Context, destination string, after types.Position, limit int) ([]Refusal, error)

	// Readmit has EDUs that stand aside, those set aside for good included, sent again at the given time: the one at a position,
	// or every one of the destination's for zero. It returns how many there were. An error may come after some were
	// readmitted: it returns how many of them.
	Readmit(ctx context.Context, destination string, position types.Position, at time.Time) (int, error)

	// Discard deletes EDUs that stand aside: the one at a position, or every one of the destination's for zero. It returns
	// what it deleted, without the contents. An error may come after some were deleted: it returns those of them.
	Discard(ctx context.Context, destination string, position types.Position) ([]Refusal, error)
}

// Outbox keeps the EDUs for other servers: of each server a line of those that wait, and beside it those
// that it refused. Its methods may be called at any time from any goroutine.
type Outbox interface {
	// Destinations returns the servers for which EDUs wait in line or are to be sent again, in any
	// order. A server of which all EDUs were set aside is none of them.
	Destinations(ctx context.Context) ([]Destination, error)

	// Waiting returns the first EDUs in a destination's line with after < position <= through, by position:
	// at most limit, and only so many that their contents have at most maxBytes bytes together, but one
	// at least if there is any. An empty line and an unknown destination return none and no error.
	Waiting(ctx context.Context, destination string, after, through types.Position, limit, maxBytes int) ([]EDU, error)

	// Sent deletes the EDUs in a destination's line up to and including through. Absence is no error.
	Sent(ctx context.Context, destination string, through types.Position) error

	// Refuse keeps an EDU beside its destination's line, in the place of what was kept under its
	// position, and takes it out of the line, in one transaction.
	Refuse(ctx context.Context, refusal Refusal) error

	// Refused returns the first refused EDUs of a destination that are to be sent again by the given time,
	// by RetryAt and position, at most limit. Those set aside are none of them.
	Refused(ctx context.Context, destination string, by time.Time, limit int) ([]Refusal, error)

	// Accepted deletes a refused EDU. Absence is no error.
	Accepted(ctx context.Context, destination string, position types.Position) error
}
