package sqlstore

import (
	"context"
	"database/sql"
	"math"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// ExportOutbox implements storage.Mover.
func (s *Store) ExportOutbox(ctx context.Context, to storage.ForeignOutbox, progress storage.Progress) (result storage.ExportedEDUs, err error) {
	var total int
	err = s.db.QueryRowContext(ctx, `
		SELECT (SELECT count(*) FROM todevice_outbox), count(retry_at), count(*) - count(retry_at) FROM todevice_refused`,
	).Scan(&total, &result.Refused, &result.SetAside)
	if err != nil {
		return result, s.failed(ctx, "count EDUs", err)
	}
	destinations, err := s.Destinations(ctx)
	if err != nil {
		return result, err
	}
	for _, destination := range destinations {
		if !destination.Waiting {
			continue
		}
		line := exportingLine{ctx: ctx, store: s, to: to, destination: destination.Name, look: true}
		for line.moved = 1; line.moved > 0; {
			if err = line.part(); err != nil {
				return result, s.failed(ctx, "export the outbox", err)
			}
			result.EDUs += line.moved
			result.Known += line.known
			progress(result.EDUs, max(total, result.EDUs))
		}
		result.Destinations++
	}
	return result, nil
}

// exportingLine is one line of the outbox under way.
type exportingLine struct {
	ctx          context.Context // asked between the parts, as in importing
	store        *Store
	to           storage.ForeignOutbox
	destination  string
	look         bool
	moved, known int // by the last part
}

// part moves the first EDUs of the line. Only those that a move moved last before it broke off can be in both
// databases, so once none of a part was known nothing behind it is.
func (l *exportingLine) part() error {
	l.moved, l.known = 0, 0
	if err := l.ctx.Err(); err != nil {
		return err
	}
	err := l.store.dialect.Transact(l.ctx, func(ctx context.Context, ours *sql.Tx) error {
		edus, err := l.store.firstEDUs(ctx, ours, l.destination)
		if err != nil || len(edus) == 0 {
			return err
		}
		added := 0
		insert := func(ctx context.Context, theirs *sql.Tx) (err error) {
			added, err = l.to.Insert(ctx, theirs, l.destination, edus, l.look)
			return err
		}
		if l.to.Shared() {
			err = insert(ctx, ours)
		} else {
			err = l.to.Transact(l.ctx, insert)
		}
		if err != nil {
			return err
		}
		through := edus[len(edus)-1].Position
		if l.moved, err = countRows(ours.QueryContext(ctx, l.store.sql.Sent, l.destination, int64(through), len(edus))); err != nil {
			return err
		}
		l.known = len(edus) - added
		return nil
	})
	l.look = l.known > 0
	return err
}

// firstEDUs returns the first EDUs of a line.
func (s *Store) firstEDUs(ctx context.Context, tx *sql.Tx, destination string) (edus []storage.EDU, err error) {
	rows, err := tx.QueryContext(ctx, s.sql.Waiting, destination, 0, int64(math.MaxInt64), movedAtOnce, movedBytesAtOnce)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	for rows.Next() {
		edu := storage.EDU{Destination: destination}
		if err = rows.Scan(&edu.Position, &edu.Origin, &edu.MessageID, &edu.Content); err != nil {
			return nil, err
		}
		edus = append(edus, edu)
	}
	return edus, rows.Err()
}
