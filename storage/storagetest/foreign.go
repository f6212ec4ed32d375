package storagetest

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var errForeign = errors.New("the host's database is away")

// foreign is a database of the host's in memory: rows that hold a message or not, and EDUs.
type foreign struct {
	*fixture
	shared bool
	rows   []storage.Queued // unreadable without a sender
	lines  map[string][]storage.EDU
	raised types.Position
	given  types.Position // by the host itself, since it was raised

	page                    int   // most messages of a page, if not zero
	failRemove, failCommit  error // after what was asked was done
	failInsert              error
	transactions, committed int
}

func (f *fixture) foreign() *foreign {
	return &foreign{fixture: f, lines: make(map[string][]storage.EDU)}
}

func (q *foreign) Shared() bool                  { return q.shared }
func (q *foreign) Prepare(context.Context) error { return nil }

// Transact gives a commit's answer as lost if failCommit is set.
func (q *foreign) Transact(ctx context.Context, do func(context.Context, *sql.Tx) error) error {
	if q.shared {
		q.Error("a queue in the same database was asked for a transaction of its own")
	}
	q.transactions++
	rows, lines := slices.Clone(q.rows), maps.Clone(q.lines)
	if err := do(ctx, nil); err != nil {
		q.rows, q.lines = rows, lines
		return err
	}
	q.committed++
	return q.failCommit
}

func (q *foreign) check(tx *sql.Tx) {
	if q.shared != (tx != nil) {
		q.Errorf("a queue with shared %t was given the transaction %v", q.shared, tx)
	}
}

func (q *foreign) Hold(_ context.Context, tx *sql.Tx) (int, error) {
	q.check(tx)
	return len(q.rows), nil
}

func (q *foreign) Page(_ context.Context, tx *sql.Tx, after types.Position, limit, maxBytes int) (page storage.ForeignPage, err error) {
	q.check(tx)
	if limit <= 0 || limit > 10_000 || maxBytes <= 0 || maxBytes > 64<<20 {
		q.Errorf("a page of %d rows and %d bytes is no bounded page", limit, maxBytes)
	}
	if q.page != 0 {
		limit = q.page
	}
	slices.SortStableFunc(q.rows, func(a, b storage.Queued) int { return cmp.Compare(a.Position, b.Position) })
	for _, row := range q.rows {
		switch {
		case row.Position <= after:
			continue
		case page.Rows >= limit && row.Position != page.Through:
			return page, nil
		case row.Sender == "":
			page.Unreadable = append(page.Unreadable, row.Position)
		default:
			page.Messages = append(page.Messages, row)
		}
		page.Rows++
		page.Through = row.Position
	}
	return page, nil
}

func (q *foreign) Remove(_ context.Context, tx *sql.Tx, through types.Position, except []types.Position) error {
	q.check(tx)
	q.rows = slices.DeleteFunc(q.rows, func(row storage.Queued) bool {
		return row.Position > 0 && row.Position <= through && !slices.Contains(except, row.Position)
	})
	return q.failRemove
}

func (q *foreign) Insert(_ context.Context, tx *sql.Tx, messages []storage.Queued) (taken []storage.Queued, err error) {
	q.check(tx)
	bytes := 0
	for _, m := range messages {
		bytes += len(m.Content)
		i := slices.IndexFunc(q.rows, func(row storage.Queued) bool { return row.Position == m.Position })
		switch {
		case i < 0:
			m.Content = slices.Clone(m.Content)
			q.rows = append(q.rows, m)
		case q.rows[i].Device != m.Device:
			taken = append(taken, m)
		}
	}
	if len(messages) > 10_000 || len(messages) > 1 && bytes > 64<<20 {
		q.Errorf("%d messages of %d bytes were inserted at once", len(messages), bytes)
	}
	return taken, q.failInsert
}

func (q *foreign) Given(_ context.Context, tx *sql.Tx) (types.Position, error) {
	q.check(tx)
	return q.given, nil
}

func (q *foreign) Raise(_ context.Context, tx *sql.Tx, atLeast types.Position) (types.Position, error) {
	q.check(tx)
	q.raised, q.given = max(q.raised, q.given, atLeast), 0
	return q.raised, nil
}

// of returns a device's messages as the host would hand them out.
func (q *foreign) of(device types.Device) (messages []types.Message) {
	for _, row := range q.rows {
		if row.Device == device {
			messages = append(messages, row.Message)
		}
	}
	slices.SortFunc(messages, func(a, b types.Message) int { return cmp.Compare(a.Position, b.Position) })
	return messages
}

// foreignLines is the outbox of a foreign database.
type foreignLines struct{ *foreign }

func (q foreignLines) Insert(_ context.Context, tx *sql.Tx, destination string, edus []storage.EDU, look bool) (added int, err error) {
	q.check(tx)
	line := slices.Clone(q.lines[destination])
	for _, edu := range edus {
		known := slices.ContainsFunc(line, func(e storage.EDU) bool { return e.MessageID == edu.MessageID })
		if look && known {
			continue
		}
		line = append(line, edu)
		added++
	}
	if len(edus) > 10_000 {
		q.Errorf("%d EDUs were inserted at once", len(edus))
	}
	q.lines[destination] = line
	return added, q.failInsert
}
