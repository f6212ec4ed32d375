package host

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/matrix-org/dendrite/syncapi/storage/sqlite3"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// sqliteQueue is syncapi_send_to_device as syncapi/storage/sqlite3/send_to_device_table.go has it.
type sqliteQueue struct{ foreignBase }

// Prepare is part of storage.Foreign.
func (q *sqliteQueue) Prepare(context.Context) error {
	return q.writer.Do(nil, nil, func(*sql.Tx) error {
		_, err := sqlite3.NewSqliteSendToDeviceTable(q.db)
		return err
	})
}

// Hold is part of storage.ForeignQueue. Nobody else writes until the transaction ends once it has written itself.
func (q *sqliteQueue) Hold(ctx context.Context, tx *sql.Tx) (rows int, err error) {
	if _, err = tx.ExecContext(ctx, `DELETE FROM syncapi_send_to_device WHERE 0`); err != nil {
		return 0, err
	}
	return rows, tx.QueryRowContext(ctx, `SELECT count(*) FROM syncapi_send_to_device`).Scan(&rows)
}

// Page is part of storage.ForeignQueue.
func (q *sqliteQueue) Page(ctx context.Context, tx *sql.Tx, after types.Position, limit, maxBytes int) (storage.ForeignPage, error) {
	return page(ctx, tx,
		`SELECT id, length(CAST(content AS BLOB)) FROM syncapi_send_to_device WHERE id > ?1 ORDER BY id LIMIT ?2`,
		`SELECT id, user_id, device_id, content FROM syncapi_send_to_device WHERE id > ?1 AND id <= ?2 ORDER BY id`,
		after, limit, maxBytes,
	)
}

// Remove is part of storage.ForeignQueue.
func (q *sqliteQueue) Remove(ctx context.Context, tx *sql.Tx, through types.Position, except []types.Position) error {
	if len(except) == 0 {
		except = []types.Position{} // NOT IN a list of JSON's null is never true
	}
	kept, err := json.Marshal(except)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		DELETE FROM syncapi_send_to_device WHERE id > 0 AND id <= ?1 AND id NOT IN (SELECT value FROM json_each(?2))`,
		int64(through), string(kept))
	return err
}

// Insert is part of storage.ForeignQueue.
func (q *sqliteQueue) Insert(ctx context.Context, tx *sql.Tx, messages []storage.Queued) (taken []storage.Queued, err error) {
	insert, err := tx.PrepareContext(ctx, `
		INSERT INTO syncapi_send_to_device (id, user_id, device_id, content) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO NOTHING`)
	if err != nil {
		return nil, err
	}
	defer insert.Close() //nolint:errcheck // the transaction closes it too
	for i := range messages {
		m := &messages[i]
		content, err := writeMessage(&m.Message)
		if err != nil {
			return nil, err
		}
		result, err := insert.ExecContext(ctx, int64(m.Position), m.UserID, m.DeviceID, content)
		if err != nil {
			return nil, err
		}
		if added, err := result.RowsAffected(); err != nil {
			return nil, err
		} else if added == 1 {
			continue
		}
		var own bool
		err = tx.QueryRowContext(ctx, `SELECT user_id = ?2 AND device_id = ?3 FROM syncapi_send_to_device WHERE id = ?1`,
			int64(m.Position), m.UserID, m.DeviceID).Scan(&own)
		if err != nil {
			return nil, err
		}
		if !own {
			taken = append(taken, *m)
		}
	}
	return taken, nil
}

const sqliteSequence = `SELECT seq FROM sqlite_sequence WHERE name = 'syncapi_send_to_device'`

// Given is part of storage.ForeignQueue.
func (q *sqliteQueue) Given(ctx context.Context, tx *sql.Tx) (last types.Position, err error) {
	err = tx.QueryRowContext(ctx, sqliteSequence).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) || last%ownStep == 0 {
		return 0, ignoreNoRows(err)
	}
	return last, err
}

// Raise is part of storage.ForeignQueue.
func (q *sqliteQueue) Raise(ctx context.Context, tx *sql.Tx, atLeast types.Position) (last types.Position, err error) {
	err = tx.QueryRowContext(ctx, sqliteSequence).Scan(&last)
	switch missing := errors.Is(err, sql.ErrNoRows); {
	case missing:
		_, err = tx.ExecContext(ctx, `INSERT INTO sqlite_sequence (name, seq) VALUES ('syncapi_send_to_device', ?1)`, int64(raised(atLeast)))
	case err != nil || last >= atLeast || last >= raised(atLeast):
		return last, err
	default:
		_, err = tx.ExecContext(ctx, `UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'syncapi_send_to_device'`, int64(raised(atLeast)))
	}
	return raised(atLeast), err
}

func ignoreNoRows(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}
