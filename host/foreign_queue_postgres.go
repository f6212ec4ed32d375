package host

import (
	"context"
	"database/sql"

	"github.com/lib/pq"
	"github.com/matrix-org/dendrite/syncapi/storage/postgres"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// postgresQueue is syncapi_send_to_device as syncapi/storage/postgres/send_to_device_table.go has it.
type postgresQueue struct{ foreignBase }

// Prepare is part of storage.Foreign.
func (q *postgresQueue) Prepare(context.Context) error {
	_, err := postgres.NewPostgresSendToDeviceTable(q.db)
	return err
}

// Hold is part of storage.ForeignQueue.
func (q *postgresQueue) Hold(ctx context.Context, tx *sql.Tx) (rows int, err error) {
	if _, err = tx.ExecContext(ctx, `LOCK TABLE syncapi_send_to_device IN EXCLUSIVE MODE`); err != nil {
		return 0, err
	}
	return rows, tx.QueryRowContext(ctx, `SELECT count(*) FROM syncapi_send_to_device`).Scan(&rows)
}

// Page is part of storage.ForeignQueue.
func (q *postgresQueue) Page(ctx context.Context, tx *sql.Tx, after types.Position, limit, maxBytes int) (storage.ForeignPage, error) {
	return page(ctx, tx,
		`SELECT id, octet_length(content) FROM syncapi_send_to_device WHERE id > $1 ORDER BY id LIMIT $2`,
		`SELECT id, user_id, device_id, content FROM syncapi_send_to_device WHERE id > $1 AND id <= $2 ORDER BY id`,
		after, limit, maxBytes,
	)
}

// Remove is part of storage.ForeignQueue.
func (q *postgresQueue) Remove(ctx context.Context, tx *sql.Tx, through types.Position, except []types.Position) error {
	_, err := tx.ExecContext(ctx, `
		DELETE FROM syncapi_send_to_device WHERE id > 0 AND id <= $1
			AND NOT EXISTS (SELECT FROM unnest($2::bigint[]) AS kept (id) WHERE kept.id = syncapi_send_to_device.id)`,
		int64(through), int64s(except))
	return err
}

// Insert is part of storage.ForeignQueue.
func (q *postgresQueue) Insert(ctx context.Context, tx *sql.Tx, messages []storage.Queued) ([]storage.Queued, error) {
	var ids pq.Int64Array
	var users, devices, contents pq.StringArray
	for i := range messages {
		m := &messages[i]
		content, err := writeMessage(&m.Message)
		if err != nil {
			return nil, err
		}
		ids, users, devices, contents = append(ids, int64(m.Position)), append(users, m.UserID), append(devices, m.DeviceID), append(contents, content)
	}
	result, err := tx.ExecContext(ctx, `
		INSERT INTO syncapi_send_to_device (id, user_id, device_id, content)
		SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[])
		ON CONFLICT (id) DO NOTHING`, ids, users, devices, contents)
	if err != nil {
		return nil, err
	}
	if added, err := result.RowsAffected(); err != nil || added == int64(len(messages)) {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, `
		SELECT k.ordinal FROM unnest($1::bigint[], $2::text[], $3::text[]) WITH ORDINALITY AS k (id, user_id, device_id, ordinal)
		JOIN syncapi_send_to_device s ON s.id = k.id
		WHERE s.user_id <> k.user_id OR s.device_id <> k.device_id ORDER BY k.ordinal`, ids, users, devices)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	var taken []storage.Queued
	for rows.Next() {
		var ordinal int
		if err = rows.Scan(&ordinal); err != nil {
			return nil, err
		}
		taken = append(taken, messages[ordinal-1])
	}
	return taken, rows.Err()
}

// Given is part of storage.ForeignQueue.
func (q *postgresQueue) Given(ctx context.Context, tx *sql.Tx) (last types.Position, err error) {
	return last, tx.QueryRowContext(ctx, `
		SELECT CASE WHEN is_called AND last_value % $1::bigint <> 0 THEN last_value ELSE 0 END FROM syncapi_send_to_device_id`,
		int64(ownStep)).Scan(&last)
}

// Raise is part of storage.ForeignQueue.
func (q *postgresQueue) Raise(ctx context.Context, tx *sql.Tx, atLeast types.Position) (last types.Position, err error) {
	return last, tx.QueryRowContext(ctx, `
		SELECT CASE WHEN is_called AND last_value >= least($1::bigint, $2::bigint) THEN last_value
			ELSE setval('syncapi_send_to_device_id', $2::bigint) END
		FROM syncapi_send_to_device_id`, max(int64(atLeast), 1), int64(raised(max(atLeast, 1)))).Scan(&last)
}

func int64s(positions []types.Position) pq.Int64Array {
	list := make(pq.Int64Array, len(positions))
	for i, position := range positions {
		list[i] = int64(position)
	}
	return list
}
