package host

import (
	"database/sql"
	"errors"

	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup/config"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
)

// Store is part of todevicemodule.Host: it opens the database through the host's connection
// manager, so that the pool is shared with the host, and on SQLite the writer too.
func (d *Dendrite) Store(section todevicemodule.DatabaseConfig) (storage.Store, error) {
	options := d.databaseOptions(section)
	db, exclusive, err := d.cm.Connection(&options)
	if err != nil {
		return nil, err
	}
	if !options.ConnectionString.IsSQLite() {
		if options.MaxOpenConnections == 1 {
			return nil, errors.New("max_open_conns must be 2 or more: one connection holds the lock that keeps a second server out")
		}
		return postgres.New(db), nil
	}
	path, err := sqlutil.ParseFileURI(options.ConnectionString)
	if err != nil {
		return nil, err
	}
	if path == ":memory:" {
		path = ""
	}
	return sqlite.New(db, exclusiveWriter{db, exclusive}, path), nil
}

// databaseOptions follows the host: a section without a connection string means the sync API's
// database, and if that has none, the global one.
func (d *Dendrite) databaseOptions(section todevicemodule.DatabaseConfig) config.DatabaseOptions {
	if section.ConnectionString != "" {
		return config.DatabaseOptions{
			ConnectionString:       config.DataSource(section.ConnectionString),
			MaxOpenConnections:     section.MaxOpenConns,
			MaxIdleConnections:     section.MaxIdleConns,
			ConnMaxLifetimeSeconds: section.ConnMaxLifetime,
		}
	}
	return d.orGlobal(d.config.SyncAPI.Database)
}

// orGlobal returns the database of a component, which is the global one if it has none of its own.
func (d *Dendrite) orGlobal(component config.DatabaseOptions) config.DatabaseOptions {
	if component.ConnectionString != "" {
		return component
	}
	return d.config.Global.DatabaseOptions
}

// exclusiveWriter is the host's writer of a SQLite database.
type exclusiveWriter struct {
	db     *sql.DB
	writer sqlutil.Writer
}

func (w exclusiveWriter) Transact(f func(*sql.Tx) error) error {
	return w.writer.Do(w.db, nil, f)
}

func (w exclusiveWriter) Exclude(f func() error) error {
	return w.writer.Do(nil, nil, func(*sql.Tx) error { return f() })
}
