package sqlite

import (
	"context"
	"database/sql"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

const present = `
	SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'todevice_position')`

const importMessage = insertMessage + `
	ON CONFLICT (user_id, device_id, position) DO NOTHING`

// The contents stay out of the sort.
const addresses = `
	SELECT rowid, position, length(CAST(content AS BLOB)) FROM todevice_messages ORDER BY position, user_id, device_id`

const messageAt = `
	SELECT user_id, device_id, position, sender, type, content FROM todevice_messages WHERE rowid = ?1`

func (dialect) ImportMessages(ctx context.Context, tx *sql.Tx, messages []storage.Queued) (inserted int64, err error) {
	if len(messages) == 0 {
		return 0, nil
	}
	statement, err := tx.PrepareContext(ctx, importMessage)
	if err != nil {
		return 0, err
	}
	defer statement.Close() //nolint:errcheck // the transaction closes it too
	for i := range messages {
		m := &messages[i]
		result, err := statement.ExecContext(ctx, m.UserID, m.DeviceID, int64(m.Position), m.Sender, m.Type, string(m.Content))
		if err != nil {
			return 0, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return 0, err
		}
		inserted += n
	}
	return inserted, nil
}

func (dialect) Addresses(ctx context.Context, tx *sql.Tx, limit int, f func([]sqlstore.Address) error) error {
	rows, err := tx.QueryContext(ctx, addresses)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	var part []sqlstore.Address
	for rows.Next() {
		var a sqlstore.Address
		if err = rows.Scan(&a.Row, &a.Position, &a.Bytes); err != nil {
			return err
		}
		if part = append(part, a); len(part) == limit {
			if err = f(part); err != nil {
				return err
			}
			part = part[:0]
		}
	}
	if err = rows.Err(); err != nil || len(part) == 0 {
		return err
	}
	return f(part)
}

func (dialect) At(ctx context.Context, tx *sql.Tx, addresses []sqlstore.Address) ([]storage.Queued, error) {
	statement, err := tx.PrepareContext(ctx, messageAt)
	if err != nil {
		return nil, err
	}
	defer statement.Close() //nolint:errcheck // the transaction closes it too
	messages := make([]storage.Queued, len(addresses))
	for i := range addresses {
		m := &messages[i]
		err = statement.QueryRowContext(ctx, addresses[i].Row).
			Scan(&m.UserID, &m.DeviceID, &m.Position, &m.Sender, &m.Type, (*[]byte)(&m.Content))
		if err != nil {
			return nil, err
		}
	}
	return messages, nil
}
