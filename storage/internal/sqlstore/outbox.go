package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Destinations implements storage.Store.
func (s *Store) Destinations(ctx context.Context) ([]storage.Destination, error) {
	var destinations []storage.Destination
	err := s.query(ctx, s.sql.Destinations, nil, func(rows *sql.Rows) error {
		var d storage.Destination
		var retryAt sql.NullInt64
		if err := rows.Scan(&d.Name, &d.Waiting, &retryAt); err != nil {
			return err
		}
		d.RetryAt = fromMicros(retryAt)
		destinations = append(destinations, d)
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "list destinations", err)
	}
	return destinations, nil
}

// Waiting implements storage.Store.
func (s *Store) Waiting(ctx context.Context, destination string, after, through types.Position, limit, maxBytes int) ([]storage.EDU, error) {
	if !isDestination(destination) || limit <= 0 || after >= through {
		return nil, nil
	}
	var edus []storage.EDU
	args := []any{destination, int64(after), int64(through), limit, maxBytes}
	err := s.query(ctx, s.sql.Waiting, args, func(rows *sql.Rows) error {
		edu := storage.EDU{Destination: destination}
		if err := rows.Scan(&edu.Position, &edu.Origin, &edu.MessageID, &edu.Content); err != nil {
			return err
		}
		edus = append(edus, edu)
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "read waiting EDUs", err)
	}
	return edus, nil
}

// sentAtOnce keeps the deletes of a long line short beside the commits of the writer.
const sentAtOnce = 1000

// Sent implements storage.Store.
func (s *Store) Sent(ctx context.Context, destination string, through types.Position) error {
	if !isDestination(destination) {
		return nil
	}
	for picked := sentAtOnce; picked == sentAtOnce; {
		err := s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) (err error) {
			picked, err = countRows(tx.QueryContext(ctx, s.sql.Sent, destination, int64(through), sentAtOnce))
			return err
		})
		if err != nil {
			return s.failed(ctx, "delete sent EDUs", err)
		}
	}
	return nil
}

func countRows(rows *sql.Rows, err error) (n int, _ error) {
	if err != nil {
		return 0, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	for rows.Next() {
		n++
	}
	return n, rows.Err()
}

// Refuse implements storage.Store.
func (s *Store) Refuse(ctx context.Context, refusal storage.Refusal) error {
	if err := checkEDU(&refusal.EDU); err != nil {
		return fmt.Errorf("keep a refused EDU: %w", err)
	}
	err := s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.sql.Refuse, refusal.Destination, int64(refusal.Position), refusal.Origin,
			refusal.MessageID, string(refusal.Content), refusal.Attempts, toMicros(refusal.RetryAt), cleanAnswer(refusal.Answer))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.sql.Leave, refusal.Destination, int64(refusal.Position))
		return err
	})
	return s.failed(ctx, "keep a refused EDU", err)
}

// Refused implements storage.Store.
func (s *Store) Refused(ctx context.Context, destination string, by time.Time, limit int) ([]storage.Refusal, error) {
	if !isDestination(destination) || limit <= 0 {
		return nil, nil
	}
	var refusals []storage.Refusal
	err := s.query(ctx, s.sql.Refused, []any{destination, by.UnixMicro(), limit}, func(rows *sql.Rows) error {
		r := storage.Refusal{EDU: storage.EDU{Destination: destination}}
		var retryAt sql.NullInt64
		if err := rows.Scan(&r.Position, &r.Origin, &r.MessageID, &r.Content, &r.Attempts, &retryAt, &r.Answer); err != nil {
			return err
		}
		r.RetryAt = fromMicros(retryAt)
		refusals = append(refusals, r)
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "read refused EDUs", err)
	}
	return refusals, nil
}

// Accepted implements storage.Store.
func (s *Store) Accepted(ctx context.Context, destination string, position types.Position) error {
	if !isDestination(destination) {
		return nil
	}
	err := s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, s.sql.Accepted, destination, int64(position))
		return err
	})
	return s.failed(ctx, "delete a refused EDU", err)
}

func toMicros(t time.Time) sql.NullInt64 {
	if t.IsZero() {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: true}
}

func fromMicros(micros sql.NullInt64) time.Time {
	if !micros.Valid {
		return time.Time{}
	}
	return time.UnixMicro(micros.Int64)
}
