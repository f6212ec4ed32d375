package host

import (
	"context"
	"database/sql"
	"path/filepath"

	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup/config"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// ForeignQueue is part of todevicemodule.Host: it opens the table syncapi_send_to_device, in which the host keeps messages
// while the module is not enabled.
func (d *Dendrite) ForeignQueue(section todevicemodule.DatabaseConfig) (storage.ForeignQueue, error) {
	base, err := d.foreign(section, d.config.SyncAPI.Database)
	if err != nil {
		return nil, err
	}
	if base.postgres {
		return &postgresQueue{base}, nil
	}
	return &sqliteQueue{base}, nil
}

// foreignBase is what is the same for every table of the host's.
type foreignBase struct {
	db       *sql.DB
	writer   sqlutil.Writer
	shared   bool
	postgres bool
}

func (d *Dendrite) foreign(section todevicemodule.DatabaseConfig, component config.DatabaseOptions) (foreignBase, error) {
	ours, theirs := d.databaseOptions(section), d.orGlobal(component)
	shared := sameDatabase(ours.ConnectionString, theirs.ConnectionString)
	if shared {
		theirs = ours
	}
	db, writer, err := d.cm.Connection(&theirs)
	return foreignBase{db, writer, shared, !theirs.ConnectionString.IsSQLite()}, err
}

// sameDatabase reports whether two connection strings certainly name the same database. On PostgreSQL it is no harm where they
// do and it says no; two connections that write to one SQLite file would wait for each other.
func sameDatabase(a, b config.DataSource) bool {
	if a == b {
		return true
	}
	pathA, errA := sqlutil.ParseFileURI(a)
	pathB, errB := sqlutil.ParseFileURI(b)
	return errA == nil && errB == nil && resolvedPath(pathA) == resolvedPath(pathB)
}

// resolvedPath returns the one name of a file that may not be there yet.
func resolvedPath(path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	if directory, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(directory, filepath.Base(path))
	}
	return path
}

// outbox returns the tables of the host's federation queues in the database.
func (f foreignBase) outbox() storage.ForeignOutbox {
	if f.postgres {
		return &postgresOutbox{f}
	}
	return &sqliteOutbox{f}
}

// Shared is part of storage.Foreign.
func (f foreignBase) Shared() bool { return f.shared }

// Transact is part of storage.Foreign. On SQLite the transaction does not end with the context, as in the store.
func (f foreignBase) Transact(ctx context.Context, do func(context.Context, *sql.Tx) error) error {
	if !f.postgres {
		ctx = context.WithoutCancel(ctx)
	}
	return f.writer.Do(f.db, nil, func(tx *sql.Tx) error { return do(ctx, tx) })
}
