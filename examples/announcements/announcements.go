// Package announcements is an example of a stream of one's own beside those of the homeserver: an operator's announcements, of which /sync
// tells every device each one once. docs/stream-positions.md goes through it.
package announcements

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/positions"
)

// ErrTaken is returned for an announcement under the ID of another one.
var ErrTaken = errors.New("another announcement has that ID")

// Transact runs f in a transaction of the database, and commits it unless f returns an error, which it returns.
type Transact func(f func(*sql.Tx) error) error

// Store keeps the announcements in the host's database, PostgreSQL or SQLite: the SQL is the same for both. One process writes to a
// database. Its methods are safe for concurrent use.
type Store struct {
	db       *sql.DB
	transact Transact

	mu sync.Mutex
	// latest is the last position that is known to be committed, and doubtful the last one of a commit of which nobody knows what became.
	latest, doubtful positions.Position
}

// The tables. announcements_position has one row: the last position that was given to an announcement.
var tables = []string{
	`CREATE TABLE IF NOT EXISTS announcements (
		position BIGINT PRIMARY KEY,
		id TEXT NOT NULL UNIQUE,
		posted_at BIGINT NOT NULL,
		body TEXT NOT NULL
	)`,
	`CREATE TABLE IF NOT EXISTS announcements_position (id INTEGER PRIMARY KEY, last BIGINT NOT NULL)`,
	`INSERT INTO announcements_position (id, last) VALUES (1, 0) ON CONFLICT DO NOTHING`,
}

// Open makes the tables where there are none. What is written goes through transact. It waits for what an earlier process left under way: from
// then on the last position is known.
func Open(ctx context.Context, db *sql.DB, transact Transact) (*Store, error) {
	s := &Store{db: db, transact: transact}
	return s, transact(func(tx *sql.Tx) error {
		for _, table := range tables {
			if _, err := tx.ExecContext(ctx, table); err != nil {
				return err
			}
		}
		return tx.QueryRowContext(ctx, `UPDATE announcements_position SET last = last WHERE id = 1 RETURNING last`).Scan(&s.latest)
	})
}

// Stream returns the announcements as a stream for a registry.
func (s *Store) Stream() positions.Stream {
	return positions.Stream{Name: "announcements", Key: "org.example.announcements", Provider: s}
}

// Post stores an announcement, and returns when it can be read. The same one again is stored once; one with another text under the same ID gets
// ErrTaken. After any other error it may be stored or not, and can be posted again.
func (s *Store) Post(ctx context.Context, id, body string) error {
	var position positions.Position
	err := s.transact(func(tx *sql.Tx) (err error) {
		position, err = post(ctx, tx, id, body)
		return err
	})
	if errors.Is(err, ErrTaken) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.doubtful = max(s.doubtful, position)
		return err
	}
	s.latest = max(s.latest, position)
	return nil
}

// post allots a position and stores the announcement under it. The row with the last position stays locked until the commit, so that positions
// become visible in their order. They are microseconds since 1970, so that they stay ahead of every token, also of those that clients
// have from before the database was restored from a backup.
func post(ctx context.Context, tx *sql.Tx, id, body string) (position positions.Position, err error) {
	now := time.Now()
	err = tx.QueryRowContext(ctx, `
		UPDATE announcements_position SET last = CASE WHEN last < $1 THEN $1 ELSE last + 1 END WHERE id = 1 RETURNING last`, now.UnixMicro(),
	).Scan(&position)
	if err != nil {
		return 0, err
	}
	var known string
	err = tx.QueryRowContext(ctx, `SELECT body FROM announcements WHERE id = $1`, id).Scan(&known)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		_, err = tx.ExecContext(ctx, `INSERT INTO announcements (position, id, posted_at, body) VALUES ($1, $2, $3, $4)`,
			position, id, now.UnixMilli(), body)
	case err == nil && known != body:
		err = ErrTaken
	}
	return position, err
}
