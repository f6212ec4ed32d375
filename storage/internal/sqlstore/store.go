// Package sqlstore is the part of a storage.Store that is the same on every SQL database.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Store implements every method of storage.Store but Migrate and Lock.
type Store struct {
	db      *sql.DB
	dialect Dialect
	sql     Statements
}

// New returns a Store over a database that holds the module's tables.
func New(db *sql.DB, dialect Dialect) *Store {
	return &Store{db: db, dialect: dialect, sql: dialect.Statements()}
}

var errNoPosition = errors.New("the position record is missing: the tables were not migrated, or were changed by hand")

// Claim implements storage.Store.
func (s *Store) Claim(ctx context.Context, writer string, atLeast types.Position) (last types.Position, err error) {
	if err = checkWriter(writer); err != nil {
		return 0, fmt.Errorf("claim: %w", err)
	}
	err = s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		return positionRow(tx.QueryRowContext(ctx, s.sql.Claim, writer, int64(atLeast)).Scan(&last))
	})
	if err != nil {
		return 0, s.failed(ctx, "claim", err)
	}
	return last, nil
}

// State implements storage.Store.
func (s *Store) State(ctx context.Context) (state storage.State, err error) {
	err = s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		return positionRow(tx.QueryRowContext(ctx, s.sql.State).Scan(&state.Writer, &state.Last))
	})
	if err != nil {
		return storage.State{}, s.failed(ctx, "read the position record", err)
	}
	return state, nil
}

func positionRow(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return errNoPosition
	}
	return err
}

// Commit implements storage.Store.
func (s *Store) Commit(ctx context.Context, batch storage.Batch) error {
	if err := checkBatch(batch); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	err := s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		// The fence comes first: it locks the position record before anything can be committed, so State
		// can't overtake a COMMIT that is on its way.
		if err := s.fence(ctx, tx, batch); err != nil {
			return err
		}
		if err := s.dialect.InsertMessages(ctx, tx, batch.Deliveries); err != nil {
			return err
		}
		if err := s.dialect.InsertEDUs(ctx, tx, batch.EDUs); err != nil {
			return err
		}
		return s.dialect.InsertTransactions(ctx, tx, batch.Transactions)
	})
	return s.failed(ctx, "commit", err)
}

func (s *Store) fence(ctx context.Context, tx *sql.Tx, batch storage.Batch) error {
	result, err := tx.ExecContext(ctx, s.sql.Fence, int64(batch.Last), batch.Writer, int64(batch.Previous))
	if err != nil {
		return err
	}
	changed, err := result.RowsAffected()
	if err == nil && changed == 0 {
		return storage.ErrFenced
	}
	return err
}

// Stored implements storage.Store.
func (s *Store) Stored(ctx context.Context, keys []types.TransactionKey) (map[types.TransactionKey]struct{}, error) {
	stored := make(map[types.TransactionKey]struct{})
	if len(keys) == 0 {
		return stored, nil
	}
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return nil, fmt.Errorf("look up transactions: %w", err)
		}
	}
	args, err := s.dialect.Keys(keys)
	if err != nil {
		return nil, s.failed(ctx, "look up transactions", err)
	}
	err = s.query(ctx, s.sql.Stored, args, func(rows *sql.Rows) error {
		var key types.TransactionKey
		if err := rows.Scan(&key.UserID, &key.DeviceID, &key.EventType, &key.TransactionID); err != nil {
			return err
		}
		stored[key] = struct{}{}
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "look up transactions", err)
	}
	return stored, nil
}

// Messages implements storage.Store.
func (s *Store) Messages(ctx context.Context, device types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error) {
	if err := checkDevice(device); err != nil {
		return nil, fmt.Errorf("read messages: %w", err)
	}
	if limit <= 0 || after >= through {
		return nil, nil
	}
	statement := s.sql.Messages
	args := []any{device.UserID, device.DeviceID, int64(after), int64(through), limit}
	if except = onlyText(except); len(except) > 0 {
		list, err := s.dialect.List(except)
		if err != nil {
			return nil, s.failed(ctx, "read messages", err)
		}
		statement, args = s.sql.MessagesExcept, append(args, list)
	}
	var messages []types.Message
	err := s.query(ctx, statement, args, func(rows *sql.Rows) error {
		var m types.Message
		if err := rows.Scan(&m.Position, &m.Sender, &m.Type, (*[]byte)(&m.Content)); err != nil {
			return err
		}
		messages = append(messages, m)
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "read messages", err)
	}
	return messages, nil
}

// ForgetTransactions implements storage.Store.
func (s *Store) ForgetTransactions(ctx context.Context, before time.Time, limit int) (int, error) {
	if limit <= 0 {
		return 0, nil
	}
	var forgotten int64
	err := s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, s.sql.Forget, before.UnixMicro(), limit)
		if err != nil {
			return err
		}
		forgotten, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return 0, s.failed(ctx, "forget transactions", err)
	}
	return int(forgotten), nil
}

func (s *Store) query(ctx context.Context, statement string, args []any, each func(*sql.Rows) error) error {
	rows, err := s.db.QueryContext(ctx, statement, args...)
	return eachRow(rows, err, each)
}

func eachRow(rows *sql.Rows, err error, each func(*sql.Rows) error) error {
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	for rows.Next() {
		if err = each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
