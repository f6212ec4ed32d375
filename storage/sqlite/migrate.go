package sqlite

import (
	"context"
	"embed"
	"errors"
	"time"

	"github.com/gofrs/flock"
	"github.com/pressly/goose/v3"

	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// lockPoll is how often Migrate looks whether another process has finished migrating.
const lockPoll = 20 * time.Millisecond

// Migrate implements storage.Store.
func (s *store) Migrate(ctx context.Context) error {
	return sqlstore.Translate(ctx, classifier{}, "migrate", s.migrate(ctx))
}

func (s *store) migrate(ctx context.Context) error {
	if s.path == "" {
		return s.migrateAlone(ctx)
	}
	path, err := lockFile(s.path, ".todevice.migrate.lock")
	if err != nil {
		return err
	}
	lock := flock.New(path)
	if _, err = lock.TryLockContext(ctx, lockPoll); err != nil {
		return err
	}
	return errors.Join(s.migrateAlone(ctx), lock.Close())
}

func (s *store) migrateAlone(ctx context.Context) error {
	return s.writer.Exclude(func() error {
		return sqlstore.Migrate(ctx, s.db, goose.DialectSQLite3, migrations, nil)
	})
}
