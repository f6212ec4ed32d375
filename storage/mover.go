package storage

import (
	"context"
	"database/sql"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// LargestForeign is the largest position of a host's own that is taken over, or given back. Positions come
// there in some 73,000 years, unless somebody changes the host's sequence by hand.
const LargestForeign types.Position = 1 << 61

// Queued is a message in a device's queue.
type Queued struct {
	types.Device
	types.Message
}

// Foreign is what the queues of the host that are not the module's have in common.
type Foreign interface {
	// Shared reports whether the queue is in the store's own database, so that its other methods take the
	// transactions of the store. Otherwise they take those of Transact alone.
	Shared() bool

	// Prepare makes the queue's tables if they are not there.
	Prepare(ctx context.Context) error

	// Transact runs f in a transaction of the queue's database and commits it if f returns nil. f has to use the
	// context it is given.
	Transact(ctx context.Context, f func(context.Context, *sql.Tx) error) error
}

// ForeignQueue is where the host itself keeps messages for its devices while the module is not enabled.
// Its IDs are the to_device positions of the host's own sync tokens.
type ForeignQueue interface {
	Foreign

	// Hold keeps other writers from the queue until the transaction ends, as far as the database allows it,
	// and returns how many rows there are.
	Hold(ctx context.Context, tx *sql.Tx) (rows int, err error)

	// Page returns the first messages with positions above after, by position: of limit rows at the most, and only
	// so many that they have at most maxBytes bytes together, but of one row at least if there is any.
	Page(ctx context.Context, tx *sql.Tx, after types.Position, limit, maxBytes int) (ForeignPage, error)

	// Remove deletes the rows with positions up to and including through, but for those in except.
	Remove(ctx context.Context, tx *sql.Tx, through types.Position, except []types.Position) error

	// Insert adds messages under their positions, no two of which are the same. It passes over those that are there
	// already, and returns those whose position belongs to another device's.
	Insert(ctx context.Context, tx *sql.Tx, messages []Queued) (taken []Queued, err error)

	// Given returns the last position that the host gave to a message by itself; zero if it gave none since
	// Raise was called last. It may also return zero where the host gave out none but those it was raised to.
	Given(ctx context.Context, tx *sql.Tx) (types.Position, error)

	// Raise makes the host give out only positions above atLeast, and returns the one above which it does; which
	// never becomes smaller. It may outlive a transaction that is rolled back.
	Raise(ctx context.Context, tx *sql.Tx, atLeast types.Position) (types.Position, error)
}

// ForeignPage is a part of a ForeignQueue.
type ForeignPage struct {
	Messages []Queued
	// Unreadable are the positions of rows between the messages that hold no message.
	Unreadable []types.Position
	// Through is the position of the page's last row. It is zero for a page without rows, at the queue's end.
	Through types.Position
	// Rows is how many rows the page has.
	Rows int
}

// ForeignOutbox is where the host itself keeps EDUs for other servers.
type ForeignOutbox interface {
	Foreign

	// Insert adds EDUs for one destination at the end of its line, and returns how many it added. With
	// look it passes over those whose MessageID waits there already.
	Insert(ctx context.Context, tx *sql.Tx, destination string, edus []EDU, look bool) (added int, err error)
}

// Imported is what came of an import.
type Imported struct {
	// Messages were moved into the store.
	Messages int
	// Unreadable is how many rows were left where they were: they hold no message, or one that the store does
	// not take, since it does not fit or its device has another one under its position.
	Unreadable int
	// Through is the largest position of a moved message; zero if there was none.
	Through types.Position
}

// Exported is what came of an export.
type Exported struct {
	Messages int `json:"messages"`
	Devices  int `json:"devices"`
	// Renumbered is how many of the messages have another position now. They are in their order.
	Renumbered int `json:"renumbered"`
}

// ExportedEDUs is what came of the export of the outbox.
type ExportedEDUs struct {
	EDUs         int `json:"edus"`
	Destinations int `json:"destinations"`
	// Known is how many of the EDUs were in the host's queue already.
	Known int `json:"known"`
	// Refused and SetAside stayed where they are: EDUs that stand aside until they are tried again, or for good.
	Refused  int `json:"refused"`
	SetAside int `json:"set_aside"`
}

// Progress is told how much of a move is done, every some hundred messages or EDUs.
type Progress func(done, total int)

// Mover moves what waits between a store and the queues of the host that are not the module's. Only the holder of Lock may
// call its methods, and nothing else may be at work on the store. A move within one database is one transaction, and
// one of EDUs a transaction for each part. A move between two databases commits to the one before it deletes
// from the other: after an error or a crash what was moved may be in both, and the same move again sets that right.
// The memory that a move takes does not grow with what waits.
type Mover interface {
	// Present reports whether the store's tables exist, in whatever version.
	Present(ctx context.Context) (bool, error)

	// Held returns how many messages the store holds.
	Held(ctx context.Context) (int, error)

	// Imported returns the largest position that an import has ever moved, zero if none has. Up to and including it positions
	// do not tell when a message was stored.
	Imported(ctx context.Context) (types.Position, error)

	// Import moves every message of the host's queue into the store, under its position.
	Import(ctx context.Context, from ForeignQueue, progress Progress) (Imported, error)

	// Export moves every message into the host's queue, under its position, and makes the host give out only positions
	// above all that the store has left behind. Messages that share a position with one of another device, as
	// older versions stored them, get the next that is free, in their order. If the host has given out positions without the
	// module, all messages get positions above those, in their order: clients that went on would have the host delete them
	// unread. No commit of whoever claimed the store before is accepted from then on.
	Export(ctx context.Context, to ForeignQueue, progress Progress) (Exported, error)

	// ExportOutbox moves every EDU that waits in line into the host's outbox, line by line.
	ExportOutbox(ctx context.Context, to ForeignOutbox, progress Progress) (ExportedEDUs, error)
}
