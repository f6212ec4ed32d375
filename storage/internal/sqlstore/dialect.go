package sqlstore

import (
	"context"
	"database/sql"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Dialect is everything in which the databases differ.
type Dialect interface {
	Classifier

	// Statements returns the SQL text.
	Statements() Statements

	// Transact runs f in a transaction and commits it if f returns nil. f has to use the context it
	// is given.
	Transact(ctx context.Context, f func(context.Context, *sql.Tx) error) error

	// Commit is Store.Commit for a valid batch. It locks the position record before it asks the database to commit
	// anything, so that State can't overtake a COMMIT that is on its way.
	Commit(ctx context.Context, batch storage.Batch) error

	// ImportMessages inserts messages in bulk and passes over those whose position their device has already. It returns
	// how many it inserted.
	ImportMessages(ctx context.Context, tx *sql.Tx, messages []storage.Queued) (inserted int64, err error)

	// Addresses calls f with the addresses of all messages by position, user and device, at most limit at a time. f may use
	// the transaction, but not change todevice_messages.
	Addresses(ctx context.Context, tx *sql.Tx, limit int, f func([]Address) error) error

	// At returns the messages at the addresses, in their order.
	At(ctx context.Context, tx *sql.Tx, addresses []Address) ([]storage.Queued, error)

	// List returns the argument that stands for a list of strings.
	List(values []string) (any, error)

	// Keys returns the arguments that stand for a list of transaction keys.
	Keys(keys []types.TransactionKey) ([]any, error)

	// Acknowledge is Store.Acknowledge for valid acknowledgements, one for each device, sorted by
	// device, and a limit above zero.
	Acknowledge(ctx context.Context, acknowledgements []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error)
}

// Statements are the SQL texts, with their arguments in this order.
type Statements struct {
	Claim          string // writer, at least; returns the last position
	State          string // returns writer and last position, locked until the transaction ends
	Messages       string // user, device, after, through, limit; returns position, sender, type, content
	MessagesExcept string // the same, List of senders
	Stored         string // Keys; returns those that exist
	Forget         string // expired before in microseconds, limit
	Destinations   string // returns destination, whether EDUs wait (1 or 0), first retry in microseconds or NULL
	Waiting        string // destination, after, through, limit, bytes; returns position, origin, message ID, content
	Sent           string // destination, through, limit; returns a row for each EDU that it picked
	Refuse         string // destination, position, origin, message ID, content, attempts, retry in microseconds or NULL, answer
	Leave          string // destination, position
	Refused        string // destination, by in microseconds, limit; returns position and what follows it in Refuse
	Accepted       string // destination, position
	Present        string // returns whether the tables are there
	Clean          CleanerStatements
	Inspect        InspectorStatements
}
