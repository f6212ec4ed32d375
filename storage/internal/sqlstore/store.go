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
	db       *sql.DB
	dialect  Dialect
	prepared *Prepared
	sql      Statements
}

// New returns a Store over a database that holds the module's tables. prepared keeps what looks up messages and
// transactions; nil means that it is planned each time.
func New(db *sql.DB, dialect Dialect, prepared *Prepared) *Store {
	return &Store{db: db, dialect: dialect, prepared: prepared, sql: dialect.Statements()}
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
	return s.failed(ctx, "commit", s.dialect.Commit(ctx, batch))
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
	err = s.lookUp(ctx, s.sql.Stored, args, func(rows *sql.Rows) error {
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
	err := s.lookUp(ctx, statement, args, func(rows *sql.Rows) error {
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

func (s *Store) lookUp(ctx context.Context, statement string, args []any, each func(*sql.Rows) error) error {
	if s.prepared == nil {
		return s.query(ctx, statement, args, each)
	}
	return s.prepared.Query(ctx, statement, args, each)
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
