package postgres

import (
	"context"
	"database/sql"
	"strconv"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

const present = `
	SELECT to_regclass('todevice_position') IS NOT NULL`

const importMessages = `
	INSERT INTO todevice_messages (user_id, device_id, position, sender, type, content)
	SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[])
	ON CONFLICT (user_id, device_id, position) DO NOTHING`

// The contents stay out of the sort.
const declareAddresses = `
	DECLARE todevice_addresses NO SCROLL CURSOR FOR
	SELECT ctid::text, position, octet_length(content) FROM todevice_messages ORDER BY position, user_id, device_id`

const messagesAt = `
	SELECT user_id, device_id, position, sender, type, content FROM todevice_messages
	WHERE ctid = ANY ($1::tid[]) ORDER BY position, user_id, device_id`

// What one statement carries at most. The driver holds a statement's arguments about four times.
const (
	chunkRows  = 2000
	chunkBytes = 4 << 20
)

func (dialect) ImportMessages(ctx context.Context, tx *sql.Tx, messages []storage.Queued) (inserted int64, err error) {
	var chunk messageChunk
	for i := range messages {
		message := &messages[i]
		if rows := len(chunk.users); rows >= chunkRows || rows > 0 && chunk.bytes+len(message.Content) > chunkBytes {
			n, err := importChunk(ctx, tx, &chunk)
			if err != nil {
				return 0, err
			}
			inserted, chunk = inserted+n, messageChunk{}
		}
		chunk.add(&storage.Delivery{
			Position: message.Position, Sender: message.Sender, Type: message.Type,
			Copies: []storage.Copy{{Device: message.Device, Content: message.Content}},
		}, 0)
	}
	n, err := importChunk(ctx, tx, &chunk)
	return inserted + n, err
}

func importChunk(ctx context.Context, tx *sql.Tx, chunk *messageChunk) (inserted int64, err error) {
	if len(chunk.users) == 0 {
		return 0, nil
	}
	var arguments []any
	for _, column := range chunk.columns() {
		arguments = append(arguments, column.values)
	}
	result, err := tx.ExecContext(ctx, importMessages, arguments...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (dialect) Addresses(ctx context.Context, tx *sql.Tx, limit int, f func([]sqlstore.Address) error) error {
	if _, err := tx.ExecContext(ctx, declareAddresses); err != nil {
		return err
	}
	for {
		addresses, err := fetchAddresses(ctx, tx, limit)
		if err != nil {
			return err
		}
		if len(addresses) == 0 {
			break
		}
		if err = f(addresses); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `CLOSE todevice_addresses`)
	return err
}

func fetchAddresses(ctx context.Context, tx *sql.Tx, limit int) (addresses []sqlstore.Address, err error) {
	rows, err := tx.QueryContext(ctx, `FETCH FORWARD `+strconv.Itoa(limit)+` FROM todevice_addresses`)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	for rows.Next() {
		var a sqlstore.Address
		if err = rows.Scan(&a.Row, &a.Position, &a.Bytes); err != nil {
			return nil, err
		}
		addresses = append(addresses, a)
	}
	return addresses, rows.Err()
}

func (dialect) At(ctx context.Context, tx *sql.Tx, addresses []sqlstore.Address) ([]storage.Queued, error) {
	ctids := make([]string, len(addresses))
	for i := range addresses {
		ctids[i] = addresses[i].Row
	}
	rows, err := tx.QueryContext(ctx, messagesAt, pq.Array(ctids))
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	messages := make([]storage.Queued, 0, len(addresses))
	for rows.Next() {
		var m storage.Queued
		if err = rows.Scan(&m.UserID, &m.DeviceID, &m.Position, &m.Sender, &m.Type, (*[]byte)(&m.Content)); err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	return messages, rows.Err()
}
