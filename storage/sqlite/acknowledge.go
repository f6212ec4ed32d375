package sqlite

import (
	"context"
	"database/sql"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// Acknowledge looks first and takes the writer's turn only if there is something to delete.
func (d dialect) Acknowledge(ctx context.Context, acknowledgements []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	pending, err := d.covered(ctx, acknowledgements)
	if err != nil || len(pending) == 0 {
		return nil, err
	}
	statement, err := d.prepared.Statement(ctx, acknowledge)
	if err != nil {
		return nil, err
	}
	var acknowledged []storage.Acknowledged
	err = d.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		acknowledged, err = deleteCovered(ctx, tx.StmtContext(ctx, statement), pending, limit)
		return err
	})
	return acknowledged, d.prepared.Checked(ctx, err, acknowledge)
}

func (d dialect) covered(ctx context.Context, acknowledgements []storage.Acknowledgement) ([]storage.Acknowledgement, error) {
	list := make([][3]any, len(acknowledgements))
	for i, a := range acknowledgements {
		list[i] = [3]any{a.UserID, a.DeviceID, int64(a.Through)}
	}
	argument, err := toJSON(list)
	if err != nil {
		return nil, err
	}
	var pending []storage.Acknowledgement
	err = d.prepared.Query(ctx, covered, []any{argument}, func(rows *sql.Rows) error {
		var i int
		if err := rows.Scan(&i); err != nil {
			return err
		}
		pending = append(pending, acknowledgements[i])
		return nil
	})
	return pending, err
}

func deleteCovered(ctx context.Context, statement *sql.Stmt, pending []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	var acknowledged []storage.Acknowledged
	for _, a := range pending {
		result, err := statement.ExecContext(ctx, a.UserID, a.DeviceID, int64(a.Through), limit)
		if err != nil {
			return nil, err
		}
		deleted, err := result.RowsAffected()
		if err != nil {
			return nil, err
		}
		if deleted > 0 {
			acknowledged = append(acknowledged, storage.Acknowledged{
				Acknowledgement: a, Deleted: int(deleted), Unfinished: deleted >= int64(limit),
			})
		}
	}
	return acknowledged, nil
}
