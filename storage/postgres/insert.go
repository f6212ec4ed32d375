package postgres

import (
	"context"
	"database/sql"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

const copyOfMessages = `COPY todevice_messages (user_id, device_id, position, sender, type, content) FROM STDIN`

const copyOfEDUs = `COPY todevice_outbox (destination, position, origin, message_id, content) FROM STDIN`

// column is an argument that has a value for each row.
type column struct {
	values any
	array  string // its type
}

func texts(values []string) column   { return column{pq.Array(values), "text[]"} }
func integers(values []int64) column { return column{pq.Array(values), "bigint[]"} }

// messageChunk is the messages that one statement carries.
type messageChunk struct {
	bytes                                    int // of the contents
	users, devices, senders, types, contents []string
	positions                                []int64
}

func (m *messageChunk) add(delivery *storage.Delivery, i int) {
	c := &delivery.Copies[i]
	m.bytes += len(c.Content)
	m.users = append(m.users, c.UserID)
	m.devices = append(m.devices, c.DeviceID)
	m.positions = append(m.positions, int64(delivery.Position)+int64(i))
	m.senders = append(m.senders, delivery.Sender)
	m.types = append(m.types, delivery.Type)
	m.contents = append(m.contents, string(c.Content))
}

// columns are in the order of the INSERT of messages.
func (m *messageChunk) columns() []column {
	return []column{texts(m.users), texts(m.devices), integers(m.positions), texts(m.senders), texts(m.types), texts(m.contents)}
}

// columnsOf are in the order of the INSERT of EDUs.
func columnsOf(edus []storage.EDU) []column {
	n := len(edus)
	destinations, origins, messageIDs, contents := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	positions := make([]int64, n)
	for i := range edus {
		edu := &edus[i]
		destinations[i], positions[i], origins[i] = edu.Destination, int64(edu.Position), edu.Origin
		messageIDs[i], contents[i] = edu.MessageID, string(edu.Content)
	}
	return []column{texts(destinations), integers(positions), texts(origins), texts(messageIDs), texts(contents)}
}

func copyMessages(ctx context.Context, tx *sql.Tx, deliveries []storage.Delivery) error {
	return copyIn(ctx, tx, copyOfMessages, func(add func(...any) error) error {
		for i := range deliveries {
			delivery := &deliveries[i]
			for j := range delivery.Copies {
				c := &delivery.Copies[j]
				err := add(c.UserID, c.DeviceID, int64(delivery.Position)+int64(j), delivery.Sender, delivery.Type, string(c.Content))
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func copyEDUs(ctx context.Context, tx *sql.Tx, edus []storage.EDU) error {
	return copyIn(ctx, tx, copyOfEDUs, func(add func(...any) error) error {
		for i := range edus {
			edu := &edus[i]
			if err := add(edu.Destination, int64(edu.Position), edu.Origin, edu.MessageID, string(edu.Content)); err != nil {
				return err
			}
		}
		return nil
	})
}

// copyIn has f add the rows of a COPY.
func copyIn(ctx context.Context, tx *sql.Tx, statement string, f func(add func(row ...any) error) error) error {
	rows, err := tx.PrepareContext(ctx, statement) //nolint:sqlclosecheck // closed below
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // it was ended, or has failed
	add := func(row ...any) error {
		_, err := rows.ExecContext(ctx, row...)
		return err
	}
	if err = f(add); err != nil {
		return err
	}
	return add() // no row ends it
}
