package announcements

import (
	"context"
	"database/sql"
	"encoding/json"

	"github.com/matrix-org/dendrite/todevicemodule/positions"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// announcement is what a client gets.
type announcement struct {
	ID       string `json:"id"`
	PostedAt int64  `json:"posted_ts"` // milliseconds since 1970
	Body     string `json:"body"`
}

// Latest is part of positions.Provider.
func (s *Store) Latest(ctx context.Context) (positions.Position, error) {
	s.mu.Lock()
	latest, known, doubts := s.latest, s.known, s.doubts
	s.mu.Unlock()
	if known {
		return latest, nil
	}
	latest, err := s.settled(ctx)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = max(s.latest, latest)
	s.known = s.doubts == doubts
	return s.latest, nil
}

// settled returns the last position once nothing is under way that moves it: an UPDATE waits for a commit whose answer was lost.
func (s *Store) settled(ctx context.Context) (latest positions.Position, err error) {
	err = s.transact(func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `UPDATE announcements_position SET last = last WHERE id = 1 RETURNING last`).Scan(&latest)
	})
	return latest, err
}

// Complete is part of positions.Provider: a device that has no position is told of everything.
func (s *Store) Complete(ctx context.Context, device types.Device, to positions.Position, limits positions.Limits) (positions.Part, error) {
	return s.Incremental(ctx, device, 0, to, limits)
}

// Incremental is part of positions.Provider. Every device is told the same.
func (s *Store) Incremental(ctx context.Context, _ types.Device, from, to positions.Position, limits positions.Limits) (positions.Part, error) {
	rows, err := s.db.QueryContext(ctx, `
		SELECT position, id, posted_at, body FROM announcements WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3`,
		from, to, limits.Items+1, // one more tells whether there is more
	)
	if err != nil {
		return positions.Part{}, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error of reading
	page := positions.NewPage(limits)
	for rows.Next() {
		var position positions.Position
		var a announcement
		if err = rows.Scan(&position, &a.ID, &a.PostedAt, &a.Body); err != nil {
			return positions.Part{}, err
		}
		item, err := json.Marshal(a)
		if err != nil {
			return positions.Part{}, err
		}
		if !page.Add(position, item) {
			break
		}
	}
	return page.Part(to), rows.Err()
}
