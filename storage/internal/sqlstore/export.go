package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Address says where a message's row is, until the transaction ends.
type Address struct {
	Row      string
	Position types.Position
	Bytes    int // of the content
}

// Export implements storage.Mover.
func (s *Store) Export(ctx context.Context, to storage.ForeignQueue, progress storage.Progress) (storage.Exported, error) {
	var m exporting
	err := s.dialect.Transact(ctx, func(inner context.Context, ours *sql.Tx) error {
		m = exporting{ctx: ctx, store: s, to: to, progress: progress, ours: ours}
		if err := m.measure(inner); err != nil {
			return err
		}
		var err error
		if to.Shared() {
			err = m.copy(inner, ours)
		} else {
			err = to.Transact(ctx, m.copy)
		}
		if err != nil {
			return err
		}
		_, err = ours.ExecContext(inner, `DELETE FROM todevice_messages`)
		return err
	})
	if err != nil {
		return storage.Exported{}, s.failed(ctx, "export messages", err)
	}
	return m.result, nil
}

var errSpareTaken = errors.New("the host's queue holds positions that it never gave out")

// exporting is one export under way.
type exporting struct {
	ctx          context.Context // asked between the parts, as in importing
	store        *Store
	to           storage.ForeignQueue
	progress     storage.Progress
	ours, theirs *sql.Tx
	result       storage.Exported

	left     types.Position // the last position that the store has left behind
	imported types.Position // the last position that was ever imported
	total    int
	allowed  types.Position // the last position that a message has now
	spare    types.Position // beyond all others
}

func (m *exporting) measure(ctx context.Context) error {
	// Whoever claimed the store before commits nothing any more, though it may have lost its lock without noticing: what it
	// stored from here on would be deleted below.
	err := m.ours.QueryRowContext(ctx, `UPDATE todevice_position SET writer = 'export' RETURNING last, imported`).Scan(&m.left, &m.imported)
	if err = positionRow(err); err != nil {
		return err
	}
	return m.ours.QueryRowContext(ctx, `
		SELECT coalesce(sum(messages), 0), count(*)
		FROM (SELECT count(*) AS messages FROM todevice_messages GROUP BY user_id, device_id) queues`,
	).Scan(&m.total, &m.result.Devices)
}

func (m *exporting) copy(ctx context.Context, theirs *sql.Tx) error {
	m.theirs = theirs
	if _, err := m.to.Hold(ctx, theirs); err != nil {
		return err
	}
	given, err := m.to.Given(ctx, theirs)
	if err != nil {
		return err
	}
	raised, err := m.to.Raise(ctx, theirs, m.left)
	if err != nil {
		return err
	}
	if given > max(m.left, m.imported) {
		// The host ran without the module since: clients have gone on, and would have it delete unread what stands
		// before their tokens. Late is better than never.
		m.allowed = raised
	}
	// Each message moves on by less than there are messages.
	m.spare = raised + types.Position(m.total)
	err = m.store.dialect.Addresses(ctx, m.ours, movedAtOnce, func(addresses []Address) error {
		for len(addresses) > 0 {
			n := firstBytes(addresses, movedBytesAtOnce)
			if err := m.part(ctx, addresses[:n]); err != nil {
				return err
			}
			addresses = addresses[n:]
		}
		return nil
	})
	if err != nil || m.result.Renumbered == 0 {
		return err
	}
	_, err = m.to.Raise(ctx, theirs, m.spare)
	return err
}

// firstBytes returns how many of the addresses have at most so many bytes together; one at least.
func firstBytes(addresses []Address, limit int) int {
	bytes := 0
	for i := range addresses {
		if bytes += addresses[i].Bytes; bytes > limit && i > 0 {
			return i
		}
	}
	return len(addresses)
}

func (m *exporting) part(ctx context.Context, addresses []Address) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	messages, err := m.store.dialect.At(ctx, m.ours, addresses)
	if err != nil {
		return err
	}
	for i := range messages {
		message := &messages[i]
		if message.Position <= m.allowed {
			message.Position = m.allowed + 1
			m.result.Renumbered++
		}
		m.allowed = message.Position
	}
	taken, err := m.to.Insert(ctx, m.theirs, messages)
	if err != nil {
		return err
	}
	if len(taken) > 0 {
		if err = m.insertLast(ctx, taken); err != nil {
			return err
		}
	}
	m.result.Messages += len(messages)
	m.progress(m.result.Messages, m.total)
	return nil
}

// insertLast gives messages whose positions the host has given out as well positions after all others: late is
// better than never. It takes two databases of which one was restored from a backup to come to this.
func (m *exporting) insertLast(ctx context.Context, messages []storage.Queued) error {
	for i := range messages {
		m.spare++
		messages[i].Position = m.spare
		m.result.Renumbered++
	}
	taken, err := m.to.Insert(ctx, m.theirs, messages)
	if err == nil && len(taken) > 0 {
		err = errSpareTaken
	}
	return err
}
