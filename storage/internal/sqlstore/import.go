package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	// movedAtOnce and movedBytesAtOnce bound what a move holds in memory.
	movedAtOnce      = 1000
	movedBytesAtOnce = 4 << 20
)

// Present implements storage.Mover.
func (s *Store) Present(ctx context.Context) (there bool, err error) {
	err = s.db.QueryRowContext(ctx, s.sql.Present).Scan(&there)
	return there, s.failed(ctx, "look for the tables", err)
}

// Held implements storage.Mover.
func (s *Store) Held(ctx context.Context) (n int, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT count(*) FROM todevice_messages`).Scan(&n)
	return n, s.failed(ctx, "count messages", err)
}

// Imported implements storage.Mover.
func (s *Store) Imported(ctx context.Context) (through types.Position, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT imported FROM todevice_position`).Scan(&through)
	return through, s.failed(ctx, "read the position record", positionRow(err))
}

// Import implements storage.Mover.
func (s *Store) Import(ctx context.Context, from storage.ForeignQueue, progress storage.Progress) (storage.Imported, error) {
	m := importing{ctx: ctx, store: s, from: from, progress: progress}
	var err error
	if from.Shared() {
		err = s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
			if err := m.copy(ctx, tx, tx); err != nil {
				return err
			}
			return m.remove(ctx, tx)
		})
	} else {
		err = from.Transact(ctx, func(ctx context.Context, theirs *sql.Tx) error {
			err := s.dialect.Transact(ctx, func(ctx context.Context, ours *sql.Tx) error { return m.copy(ctx, ours, theirs) })
			if err != nil {
				return err
			}
			return m.remove(ctx, theirs)
		})
	}
	if err != nil {
		return storage.Imported{}, s.failed(ctx, "import messages", err)
	}
	m.done.Unreadable = len(m.unreadable)
	return m.done, nil
}

// importing is one import under way.
type importing struct {
	// ctx is asked between the parts, since on SQLite that of a transaction does not end.
	ctx        context.Context
	store      *Store
	from       storage.ForeignQueue
	progress   storage.Progress
	done       storage.Imported
	unreadable []types.Position
	read       types.Position // up to here
}

func (m *importing) copy(ctx context.Context, ours, theirs *sql.Tx) error {
	total, err := m.from.Hold(ctx, theirs)
	if err != nil || total == 0 {
		return err
	}
	for rows := 0; ; {
		if err = m.ctx.Err(); err != nil {
			return err
		}
		page, err := m.from.Page(ctx, theirs, m.read, movedAtOnce, movedBytesAtOnce)
		if err != nil {
			return err
		}
		if page.Rows == 0 {
			_, err = ours.ExecContext(ctx, `UPDATE todevice_position SET imported = $1 WHERE imported < $1`, int64(m.done.Through))
			return err
		}
		if page.Through <= m.read {
			return errNoProgress
		}
		m.unreadable = append(m.unreadable, page.Unreadable...)
		if err = m.insert(ctx, ours, m.takeable(page.Messages)); err != nil {
			return err
		}
		m.read, rows = page.Through, rows+page.Rows
		m.progress(rows, max(rows, total))
	}
}

var errNoProgress = errors.New("the host's queue does not come in the order of its positions")

// takeable returns the messages that the store takes, and notes the others.
func (m *importing) takeable(messages []storage.Queued) []storage.Queued {
	taken := messages[:0]
	for i := range messages {
		message := &messages[i]
		if !importable(message) {
			m.unreadable = append(m.unreadable, message.Position)
			continue
		}
		taken = append(taken, *message)
		m.done.Messages++
		m.done.Through = max(m.done.Through, message.Position)
	}
	return taken
}

// insert notes the messages that stay with the host, since their device has another one under their position: the host's
// sequence was set back.
func (m *importing) insert(ctx context.Context, ours *sql.Tx, messages []storage.Queued) error {
	inserted, err := m.store.dialect.ImportMessages(ctx, ours, messages)
	if err != nil || inserted == int64(len(messages)) {
		return err
	}
	for i := range messages {
		same, err := isHeld(ctx, ours, &messages[i])
		if err != nil {
			return err
		}
		if !same {
			m.unreadable = append(m.unreadable, messages[i].Position)
			m.done.Messages--
		}
	}
	return nil
}

// isHeld reports whether the message under the position of m is m. An export may have taken white space out of its content.
func isHeld(ctx context.Context, ours *sql.Tx, m *storage.Queued) (bool, error) {
	var held types.Message
	err := ours.QueryRowContext(ctx, `
		SELECT sender, type, content FROM todevice_messages WHERE user_id = $1 AND device_id = $2 AND position = $3`,
		m.UserID, m.DeviceID, int64(m.Position)).Scan(&held.Sender, &held.Type, (*[]byte)(&held.Content))
	if err != nil {
		return false, err
	}
	return held.Sender == m.Sender && held.Type == m.Type && bytes.Equal(compact(held.Content), compact(m.Content)), nil
}

func compact(content []byte) []byte {
	var out bytes.Buffer
	if json.Compact(&out, content) != nil {
		return content
	}
	return out.Bytes()
}

func importable(m *storage.Queued) bool {
	return m.Position > 0 && m.Position <= storage.LargestForeign && storage.Storable(m.Device) &&
		isText(m.Sender) && isText(m.Type) && isTextContent(m.Content)
}

func (m *importing) remove(ctx context.Context, theirs *sql.Tx) error {
	if m.done.Messages == 0 {
		return nil
	}
	return m.from.Remove(ctx, theirs, m.done.Through, m.unreadable)
}
