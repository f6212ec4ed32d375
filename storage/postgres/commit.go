package postgres

import (
	"context"
	"database/sql"
	"strconv"
	"strings"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// From so many rows or bytes on, COPY takes less time than the two round trips that it costs: 1,000 rows of 1 KB take half
// of what they take as arrays.
const (
	copiedRows  = 32
	copiedBytes = 64 << 10
)

// Commit takes three round trips: BEGIN, one statement for all there is, and COMMIT, which is sent only once the statement
// has locked the position record. What is much goes ahead by COPY. The server waits for ever for a client that goes silent in
// the middle of a COPY, so the record is not locked by then. The statement looks nothing up, so that the plan that is kept of it
// suits tables of any size.
func (d dialect) Commit(ctx context.Context, batch storage.Batch) error {
	c := newCommit(batch)
	text := c.text.String()
	statement, err := d.prepared.Statement(ctx, text)
	if err != nil {
		return err
	}
	err = d.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, copied := range c.copied {
			if err := copied(ctx, tx); err != nil {
				return err
			}
		}
		var moved, recorded int
		//nolint:sqlclosecheck // the transaction closes it
		err := tx.StmtContext(ctx, statement).QueryRowContext(ctx, c.arguments...).Scan(&moved, &recorded)
		switch {
		case err != nil:
			return err
		case moved == 0:
			return storage.ErrFenced
		case recorded < len(batch.Transactions):
			return storage.ErrStored
		}
		return nil
	})
	if err != nil && len(c.copied) > 0 && d.Refuses(err) {
		return d.orFenced(ctx, batch, err)
	}
	return d.prepared.Checked(ctx, err, text)
}

// orFenced returns ErrFenced where another commit moved the position record on, which may have stored what the refused one
// found in its way.
func (d dialect) orFenced(ctx context.Context, batch storage.Batch, refusal error) error {
	var unmoved bool
	if err := d.db.QueryRowContext(ctx, unmovedSince, batch.Writer, int64(batch.Previous)).Scan(&unmoved); err != nil {
		return err
	}
	if !unmoved {
		return storage.ErrFenced
	}
	return refusal
}

const unmovedSince = `
	SELECT EXISTS (SELECT FROM todevice_position WHERE writer = $1 AND last = $2)`

// The SQL of a commit. Each INSERT joins the fence, so nothing is inserted before it has the lock. $1 to $8 are always there;
// what follows them depends on what else the batch has.
const (
	commitStart = `
	WITH fence AS (
		UPDATE todevice_position SET last = $1 WHERE writer = $2 AND last = $3 AND ` + hurry + `
		RETURNING id
	), transactions AS (
		INSERT INTO todevice_transactions (user_id, device_id, event_type, transaction_id, expires_at)
		SELECT r.* FROM fence, unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[]) r
		ON CONFLICT DO NOTHING
		RETURNING 1`
	commitMessages = `
	), messages AS (
		INSERT INTO todevice_messages (user_id, device_id, position, sender, type, content)
		SELECT r.* FROM fence, `
	commitEDUs = `
	), edus AS (
		INSERT INTO todevice_outbox (destination, position, origin, message_id, content)
		SELECT r.* FROM fence, `
	commitEnd = `
	)
	SELECT (SELECT count(*) FROM fence), (SELECT count(*) FROM transactions)`
)

// commit is a batch on its way into the database.
type commit struct {
	text      strings.Builder // of the statement
	arguments []any
	copied    []func(context.Context, *sql.Tx) error // what goes ahead of it
}

func newCommit(batch storage.Batch) *commit {
	c := &commit{arguments: []any{int64(batch.Last), batch.Writer, int64(batch.Previous)}}
	c.text.WriteString(commitStart)
	c.addTransactions(batch.Transactions)
	c.addMessages(batch.Deliveries)
	c.addEDUs(batch.EDUs)
	c.text.WriteString(commitEnd)
	return c
}

func (c *commit) addTransactions(transactions []storage.Transaction) {
	n := len(transactions)
	users, devices, eventTypes, ids := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	times := make([]int64, n)
	for i := range transactions {
		t := &transactions[i]
		users[i], devices[i], eventTypes[i], ids[i] = t.UserID, t.DeviceID, t.EventType, t.TransactionID
		times[i] = t.ExpiresAt.UnixMicro()
	}
	c.arguments = append(c.arguments, pq.Array(users), pq.Array(devices), pq.Array(eventTypes), pq.Array(ids), pq.Array(times))
}

func (c *commit) addMessages(deliveries []storage.Delivery) {
	rows, bytes := 0, 0
	for i := range deliveries {
		rows += len(deliveries[i].Copies)
		for j := range deliveries[i].Copies {
			bytes += len(deliveries[i].Copies[j].Content)
		}
	}
	switch {
	case rows == 0:
	case isMuch(rows, bytes):
		c.copied = append(c.copied, func(ctx context.Context, tx *sql.Tx) error { return copyMessages(ctx, tx, deliveries) })
	default:
		var chunk messageChunk
		for i := range deliveries {
			for j := range deliveries[i].Copies {
				chunk.add(&deliveries[i], j)
			}
		}
		c.insert(commitMessages, chunk.columns())
	}
}

func (c *commit) addEDUs(edus []storage.EDU) {
	bytes := 0
	for i := range edus {
		bytes += len(edus[i].Content)
	}
	switch {
	case len(edus) == 0:
	case isMuch(len(edus), bytes):
		c.copied = append(c.copied, func(ctx context.Context, tx *sql.Tx) error { return copyEDUs(ctx, tx, edus) })
	default:
		c.insert(commitEDUs, columnsOf(edus))
	}
}

func isMuch(rows, bytes int) bool { return rows >= copiedRows || bytes >= copiedBytes }

// insert adds rows to the statement.
func (c *commit) insert(into string, columns []column) {
	c.text.WriteString(into)
	separator := "unnest($"
	for _, column := range columns {
		c.arguments = append(c.arguments, column.values)
		c.text.WriteString(separator)
		c.text.WriteString(strconv.Itoa(len(c.arguments)))
		c.text.WriteString("::")
		c.text.WriteString(column.array)
		separator = ", $"
	}
	c.text.WriteString(") r")
}
