package host

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/lib/pq"
	"github.com/matrix-org/dendrite/federationapi/storage/postgres"
	"github.com/matrix-org/dendrite/federationapi/storage/sqlite3"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// postgresOutbox and sqliteOutbox are federationsender_queue_json and federationsender_queue_edus as the packages below
// federationapi/storage have them. EDUs of this type never expire there.
type (
	postgresOutbox struct{ foreignBase }
	sqliteOutbox   struct{ foreignBase }
)

const waitingBodies = `
	SELECT j.json_body FROM federationsender_queue_edus e JOIN federationsender_queue_json j ON j.json_nid = e.json_nid
	WHERE e.server_name = $1 AND e.edu_type = '` + spec.MDirectToDevice + `'`

// Prepare is part of storage.Foreign.
func (o *postgresOutbox) Prepare(context.Context) error {
	_, jsonErr := postgres.NewPostgresQueueJSONTable(o.db)
	_, edusErr := postgres.NewPostgresQueueEDUsTable(o.db)
	return errors.Join(jsonErr, edusErr)
}

// Prepare is part of storage.Foreign.
func (o *sqliteOutbox) Prepare(context.Context) error {
	return o.writer.Do(nil, nil, func(*sql.Tx) error {
		_, jsonErr := sqlite3.NewSQLiteQueueJSONTable(o.db)
		_, edusErr := sqlite3.NewSQLiteQueueEDUsTable(o.db)
		return errors.Join(jsonErr, edusErr)
	})
}

// Insert is part of storage.ForeignOutbox.
func (o *postgresOutbox) Insert(ctx context.Context, tx *sql.Tx, destination string, edus []storage.EDU, look bool) (int, error) {
	bodies, err := newBodies(ctx, tx, destination, edus, look)
	if err != nil || len(bodies) == 0 {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, `
		WITH added AS (
			INSERT INTO federationsender_queue_json (json_body)
			SELECT body FROM unnest($1::text[]) WITH ORDINALITY AS b (body, ordinal) ORDER BY ordinal
			RETURNING json_nid
		)
		INSERT INTO federationsender_queue_edus (edu_type, server_name, json_nid, expires_at)
		SELECT $2, $3, json_nid, 0 FROM added ORDER BY json_nid`,
		pq.StringArray(bodies), spec.MDirectToDevice, destination)
	return len(bodies), err
}

// Insert is part of storage.ForeignOutbox.
func (o *sqliteOutbox) Insert(ctx context.Context, tx *sql.Tx, destination string, edus []storage.EDU, look bool) (int, error) {
	bodies, err := newBodies(ctx, tx, destination, edus, look)
	if err != nil {
		return 0, err
	}
	for _, body := range bodies {
		result, err := tx.ExecContext(ctx, `INSERT INTO federationsender_queue_json (json_body) VALUES (?1)`, body)
		if err != nil {
			return 0, err
		}
		nid, err := result.LastInsertId()
		if err != nil {
			return 0, err
		}
		_, err = tx.ExecContext(ctx, `
			INSERT INTO federationsender_queue_edus (edu_type, server_name, json_nid, expires_at) VALUES (?1, ?2, ?3, 0)`,
			spec.MDirectToDevice, destination, nid)
		if err != nil {
			return 0, err
		}
	}
	return len(bodies), nil
}

// newBodies returns the EDUs as the host keeps them; with look only those that do not wait yet.
func newBodies(ctx context.Context, tx *sql.Tx, destination string, edus []storage.EDU, look bool) ([]string, error) {
	known := make(map[string]bool)
	if look {
		var err error
		if known, err = waitingIDs(ctx, tx, destination, edus); err != nil {
			return nil, err
		}
	}
	bodies := make([]string, 0, len(edus))
	for i := range edus {
		if known[edus[i].MessageID] {
			continue
		}
		body, err := encode(gomatrixserverlib.EDU{
			Type: spec.MDirectToDevice, Origin: edus[i].Origin, Content: spec.RawJSON(edus[i].Content),
		})
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

// waitingIDs returns the message IDs of those of the EDUs that wait for the destination.
func waitingIDs(ctx context.Context, tx *sql.Tx, destination string, edus []storage.EDU) (map[string]bool, error) {
	wanted := make(map[string]bool, len(edus))
	for i := range edus {
		wanted[edus[i].MessageID] = true
	}
	rows, err := tx.QueryContext(ctx, waitingBodies, destination)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	known := make(map[string]bool)
	for rows.Next() {
		var body sql.RawBytes
		if err = rows.Scan(&body); err != nil {
			return nil, err
		}
		var edu struct {
			Content struct {
				MessageID string `json:"message_id"`
			} `json:"content"`
		}
		if json.Unmarshal(body, &edu) == nil && wanted[edu.Content.MessageID] {
			known[edu.Content.MessageID] = true
		}
	}
	return known, rows.Err()
}
