package postgres

import (
	"context"
	"database/sql"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// What one statement carries at most. The driver holds a statement's arguments about four times.
const (
	chunkRows  = 2000
	chunkBytes = 4 << 20
)

func (dialect) InsertMessages(ctx context.Context, tx *sql.Tx, deliveries []storage.Delivery) error {
	var chunk messageChunk
	for _, delivery := range deliveries {
		for i, c := range delivery.Copies {
			if chunk.full(len(c.Content)) {
				if err := chunk.insert(ctx, tx); err != nil {
					return err
				}
				chunk = messageChunk{}
			}
			chunk.add(delivery, i)
		}
	}
	return chunk.insert(ctx, tx)
}

// chunkSize is what a statement carries so far.
type chunkSize struct{ rows, bytes int }

func (c *chunkSize) full(next int) bool {
	return c.rows >= chunkRows || c.rows > 0 && c.bytes+next > chunkBytes
}

func (c *chunkSize) grow(bytes int) {
	c.rows++
	c.bytes += bytes
}

type messageChunk struct {
	chunkSize
	users, devices, senders, types, contents []string
	positions                                []int64
}

func (m *messageChunk) add(delivery storage.Delivery, i int) {
	c := &delivery.Copies[i]
	m.grow(len(c.Content))
	m.users = append(m.users, c.UserID)
	m.devices = append(m.devices, c.DeviceID)
	m.positions = append(m.positions, int64(delivery.Position)+int64(i))
	m.senders = append(m.senders, delivery.Sender)
	m.types = append(m.types, delivery.Type)
	m.contents = append(m.contents, string(c.Content))
}

func (m *messageChunk) insert(ctx context.Context, tx *sql.Tx) error {
	_, err := m.insertBy(ctx, tx, insertMessages)
	return err
}

func (m *messageChunk) insertBy(ctx context.Context, tx *sql.Tx, statement string) (inserted int64, err error) {
	if m.rows == 0 {
		return 0, nil
	}
	result, err := tx.ExecContext(ctx, statement, pq.Array(m.users), pq.Array(m.devices),
		pq.Array(m.positions), pq.Array(m.senders), pq.Array(m.types), pq.Array(m.contents))
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (dialect) InsertTransactions(ctx context.Context, tx *sql.Tx, transactions []storage.Transaction) error {
	for len(transactions) > 0 {
		n := min(len(transactions), chunkRows)
		if err := insertTransactionChunk(ctx, tx, transactions[:n]); err != nil {
			return err
		}
		transactions = transactions[n:]
	}
	return nil
}

func insertTransactionChunk(ctx context.Context, tx *sql.Tx, transactions []storage.Transaction) error {
	var users, devices, eventTypes, ids []string
	var times []int64
	for _, t := range transactions {
		users = append(users, t.UserID)
		devices = append(devices, t.DeviceID)
		eventTypes = append(eventTypes, t.EventType)
		ids = append(ids, t.TransactionID)
		times = append(times, t.ExpiresAt.UnixMicro())
	}
	_, err := tx.ExecContext(ctx, insertTransactions, pq.Array(users), pq.Array(devices),
		pq.Array(eventTypes), pq.Array(ids), pq.Array(times))
	return err
}
