package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"math"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// InspectorStatements are the SQL texts of storage.Inspector. Where there is no oldest position, they return 0.
type InspectorStatements struct {
	Totals       string // returns queues, messages, oldest position, and what follows the destination in Lines
	QueuesBySize string // most messages, user, device, limit; returns user, device, messages, bytes, oldest and newest position
	QueuesByAge  string // oldest position, user, device, limit; returns the same
	CountsBySize string // as QueuesBySize, with 0 for the bytes
	CountsByAge  string // as QueuesByAge, with 0 for the bytes
	Envelopes    string // user, device, after, limit; returns position, sender, type, bytes, message ID as messageID takes it
	Lines        string // after, limit; returns destination, waiting, bytes, oldest position, those aside, those of them to be sent again
	Line         string // destination; returns the same
	Aside        string // destination, after, limit; returns position, origin, message ID, attempts, retry in microseconds or NULL, answer
	Readmit      string // destination, after, through, retry in microseconds
	Discard      string // destination, after, through; returns the same as Aside
}

// Totals implements storage.Store.
func (s *Store) Totals(ctx context.Context) (totals storage.Totals, err error) {
	err = s.query(ctx, s.sql.Inspect.Totals, nil, func(rows *sql.Rows) error {
		return scanLine(rows, &totals.Outbox, &totals.Queues, &totals.Messages, &totals.Oldest)
	})
	if err != nil {
		return storage.Totals{}, s.failed(ctx, "sum up the store", err)
	}
	return totals, nil
}

// Queues implements storage.Store.
func (s *Store) Queues(ctx context.Context, order storage.Order, after *storage.Queue, limit int) ([]storage.Queue, error) {
	return s.listQueues(ctx, s.sql.Inspect.QueuesBySize, s.sql.Inspect.QueuesByAge, order, after, limit)
}

// CountQueues implements storage.Store.
func (s *Store) CountQueues(ctx context.Context, order storage.Order, after *storage.Queue, limit int) ([]storage.Queue, error) {
	return s.listQueues(ctx, s.sql.Inspect.CountsBySize, s.sql.Inspect.CountsByAge, order, after, limit)
}

func (s *Store) listQueues(ctx context.Context, bySize, byAge string, order storage.Order, after *storage.Queue, limit int) ([]storage.Queue, error) {
	if limit <= 0 {
		return nil, nil
	}
	statement, args, err := queuesAfter(bySize, byAge, order, after)
	if err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	var queues []storage.Queue
	err = s.query(ctx, statement, append(args, limit), func(rows *sql.Rows) error {
		var q storage.Queue
		if err := rows.Scan(&q.UserID, &q.DeviceID, &q.Messages, &q.Bytes, &q.Oldest, &q.Newest); err != nil {
			return err
		}
		queues = append(queues, q)
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "list queues", err)
	}
	return queues, nil
}

func queuesAfter(bySize, byAge string, order storage.Order, after *storage.Queue) (statement string, args []any, err error) {
	var first storage.Queue
	switch order {
	case storage.BySize:
		statement, first.Messages = bySize, math.MaxInt
	case storage.ByAge:
		statement, first.Oldest = byAge, math.MinInt64
	default:
		return "", nil, fmt.Errorf("the order %d is not known", order)
	}
	if after == nil {
		after = &first
	}
	key := int64(after.Messages)
	if order == storage.ByAge {
		key = int64(after.Oldest)
	}
	return statement, []any{key, after.UserID, after.DeviceID}, checkDevice(after.Device)
}

// Envelopes implements storage.Store.
func (s *Store) Envelopes(ctx context.Context, device types.Device, after types.Position, limit int) ([]storage.Envelope, error) {
	if err := checkDevice(device); err != nil {
		return nil, fmt.Errorf("list messages: %w", err)
	}
	if limit <= 0 {
		return nil, nil
	}
	var envelopes []storage.Envelope
	args := []any{device.UserID, device.DeviceID, int64(after), limit}
	err := s.query(ctx, s.sql.Inspect.Envelopes, args, func(rows *sql.Rows) error {
		var e storage.Envelope
		var literal sql.NullString
		if err := rows.Scan(&e.Position, &e.Sender, &e.Type, &e.Bytes, &literal); err != nil {
			return err
		}
		e.MessageID = messageID(literal.String)
		envelopes = append(envelopes, e)
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "list messages", err)
	}
	return envelopes, nil
}
