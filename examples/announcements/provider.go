package announcements

import (
	"context"
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

// Latest is part of positions.Provider. While a commit is in doubt it asks the database, which may have it later: a /sync that waits is then
// told by the next one. It does not wait for that, since everything else in /sync would wait too.
func (s *Store) Latest(ctx context.Context) (positions.Position, error) {
	s.mu.Lock()
	latest, doubtful := s.latest, s.doubtful
	s.mu.Unlock()
	if latest >= doubtful {
		return latest, nil
	}
	if err := s.db.QueryRowContext(ctx, `SELECT last FROM announcements_position`).Scan(&latest); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = max(s.latest, latest)
	return s.latest, nil
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
