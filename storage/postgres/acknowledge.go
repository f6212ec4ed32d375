package postgres

import (
	"context"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// Acknowledge is one statement: PostgreSQL deletes by row address in the order of addresses, so
// concurrent calls can't deadlock, and a statement that deletes nothing writes nothing.
func (d dialect) Acknowledge(ctx context.Context, acknowledgements []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	var users, devices []string
	var throughs []int64
	for _, a := range acknowledgements {
		users = append(users, a.UserID)
		devices = append(devices, a.DeviceID)
		throughs = append(throughs, int64(a.Through))
	}
	rows, err := d.db.QueryContext(ctx, acknowledge, pq.Array(users), pq.Array(devices), pq.Array(throughs), limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	var acknowledged []storage.Acknowledged
	for rows.Next() {
		var ordinal int
		var a storage.Acknowledged
		if err = rows.Scan(&ordinal, &a.Deleted, &a.Unfinished); err != nil {
			return nil, err
		}
		if a.Acknowledgement = acknowledgements[ordinal-1]; a.Deleted > 0 || a.Unfinished {
			acknowledged = append(acknowledged, a)
		}
	}
	return acknowledged, rows.Err()
}
