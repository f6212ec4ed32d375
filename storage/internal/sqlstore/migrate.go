package sqlstore

import (
	"context"
	"database/sql"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// versionTable is the module's own: the host, or another module in it, may use goose too.
const versionTable = "todevice_migrations"

// Migrate applies the SQL files of directory "migrations" in files that were not applied yet.
func Migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, files fs.FS, locker lock.SessionLocker) error {
	provider, err := NewProvider(db, dialect, files, locker)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// NewProvider returns what moves a database to any version of the tables. The locker may be nil.
func NewProvider(db *sql.DB, dialect goose.Dialect, files fs.FS, locker lock.SessionLocker) (*goose.Provider, error) {
	migrations, err := fs.Sub(files, "migrations")
	if err != nil {
		return nil, err
	}
	options := []goose.ProviderOption{
		goose.WithTableName(versionTable),
		goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()),
	}
	if locker != nil {
		options = append(options, goose.WithSessionLocker(locker))
	}
	return goose.NewProvider(dialect, db, migrations, options...)
}
