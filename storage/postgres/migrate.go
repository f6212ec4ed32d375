package postgres

import (
	"context"
	"database/sql"
	"embed"

	"github.com/pressly/goose/v3"

	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate implements storage.Store.
func (s *store) Migrate(ctx context.Context) error {
	err := sqlstore.Migrate(ctx, s.db, goose.DialectPostgres, migrations, migrationLock{})
	return sqlstore.Translate(ctx, classifier{}, "migrate", err)
}

// migrationLock makes processes that migrate the same schema wait for each other. goose's own lock is
// one for all schemas and polls every five seconds.
type migrationLock struct{}

const migrationKey = `hashtextextended('todevice_migrations ' || coalesce(current_schema(), ''), 0)`

func (migrationLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock(`+migrationKey+`)`)
	return err
}

func (migrationLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, `SELECT pg_advisory_unlock(`+migrationKey+`)`)
	return err
}
