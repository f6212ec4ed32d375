package host

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// ownStep is what the module raises the host's sequence by multiples of. The host counts one by one, so that a
// sequence at such a multiple, 72 minutes apart, was left there by the module.
const ownStep types.Position = 1 << 32

// largestRaised is the largest multiple that a sequence is raised to: the host has to have room beyond it.
const largestRaised types.Position = 1 << 62

// raised returns what a sequence is set to so that it gives out only positions above atLeast.
func raised(atLeast types.Position) types.Position {
	return (min(max(atLeast, 0), largestRaised) + ownStep - 1) / ownStep * ownStep
}

// readMessage reads the content column of syncapi_send_to_device. It returns false if that holds no message.
func readMessage(content []byte, m *types.Message) bool {
	var event gomatrixserverlib.SendToDeviceEvent
	if !isObject(content) || json.Unmarshal(content, &event) != nil || !isObject(event.Content) || types.IsTooDeep(event.Content) {
		return false
	}
	m.Sender, m.Type, m.Content = event.Sender, event.Type, event.Content
	return true
}

func isObject(text []byte) bool {
	text = bytes.TrimLeft(text, " \t\r\n")
	return len(text) > 0 && text[0] == '{'
}

// writeMessage returns the content column for a message.
func writeMessage(m *types.Message) (string, error) {
	return encode(gomatrixserverlib.SendToDeviceEvent{Sender: m.Sender, Type: m.Type, Content: m.Content})
}

// encode leaves the bytes of a content as they are, where json.Marshal would escape some of them.
func encode(value any) (string, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return "", err
	}
	return string(bytes.TrimRight(out.Bytes(), "\n")), nil
}

// pageEnd returns the last ID of the rows that one page takes: at most maxBytes, but one row. rows has ID and size of each.
func pageEnd(rows *sql.Rows, maxBytes int) (end int64, err error) {
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	bytes := 0
	for n := 0; rows.Next(); n++ {
		var id int64
		var size int
		if err = rows.Scan(&id, &size); err != nil {
			return 0, err
		}
		if bytes += size; bytes > maxBytes && n > 0 {
			break
		}
		end = id
	}
	return end, rows.Err()
}

// readPage reads rows of ID, user ID, device ID and content.
func readPage(rows *sql.Rows) (page storage.ForeignPage, err error) {
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	for rows.Next() {
		var m storage.Queued
		var content []byte
		if err = rows.Scan(&m.Position, &m.UserID, &m.DeviceID, &content); err != nil {
			return page, err
		}
		if readMessage(content, &m.Message) {
			page.Messages = append(page.Messages, m)
		} else {
			page.Unreadable = append(page.Unreadable, m.Position)
		}
		page.Through = m.Position
		page.Rows++
	}
	return page, rows.Err()
}

// page reads sizes first and contents then, so that nothing is read that the page has no room for.
func page(ctx context.Context, tx *sql.Tx, sizes, contents string, after types.Position, limit, maxBytes int) (storage.ForeignPage, error) {
	rows, err := tx.QueryContext(ctx, sizes, int64(after), limit)
	if err != nil {
		return storage.ForeignPage{}, err
	}
	end, err := pageEnd(rows, maxBytes)
	if err != nil || end == 0 {
		return storage.ForeignPage{}, err
	}
	if rows, err = tx.QueryContext(ctx, contents, int64(after), end); err != nil {
		return storage.ForeignPage{}, err
	}
	return readPage(rows)
}
