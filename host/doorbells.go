package host

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// removeDoorbells deletes from the host's federation queues what only the module takes out again before it is sent.
func (f foreignBase) removeDoorbells(ctx context.Context) error {
	err := f.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
		doorbells, err := findDoorbells(ctx, tx)
		if err != nil {
			return err
		}
		for _, nid := range doorbells {
			for _, table := range []string{"federationsender_queue_edus", "federationsender_queue_json"} {
				if _, err = tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE json_nid = $1`, nid); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing doorbells from the host's queue: %w", err)
	}
	return nil
}

func findDoorbells(ctx context.Context, tx *sql.Tx) (nids []int64, err error) {
	rows, err := tx.QueryContext(ctx, `
		SELECT e.json_nid, j.json_body FROM federationsender_queue_edus e JOIN federationsender_queue_json j ON j.json_nid = e.json_nid
		WHERE e.edu_type = '`+spec.MDirectToDevice+`' AND j.json_body LIKE '%'||$1||'%'`, outbox.DoorbellType)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	for rows.Next() {
		var nid int64
		var body []byte
		if err = rows.Scan(&nid, &body); err != nil {
			return nil, err
		}
		var edu gomatrixserverlib.EDU
		if json.Unmarshal(body, &edu) == nil && outbox.IsDoorbell(edu) {
			nids = append(nids, nid)
		}
	}
	return nids, rows.Err()
}
