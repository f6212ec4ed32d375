package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// ErrInUse is returned by Export while another process is connected to one of the databases.
var ErrInUse = errors.New("another process uses the database")

// ErrNoDatabase is returned by Export if the file of a SQLite database is not there.
var ErrNoDatabase = errors.New("the database is not there; is the configuration the server's, and this the directory in which the server is started?")

// ErrElsewhere is returned by Export if the module has run, but not in the database in which it was looked for.
var ErrElsewhere = errors.New("the module has run on this server, but its tables are not in this database; is to_device.database in dendrite.yaml what it was then?")

// ExportOptions say how to export.
type ExportOptions struct {
	// Force exports even though others are connected to a PostgreSQL database, but not while a server with the module
	// runs on it.
	Force bool
	Log   *logrus.Entry
}

// ExportReport is what came of an export.
type ExportReport struct {
	// Nothing says that the module never ran on the database.
	Nothing bool                 `json:"nothing"`
	Queues  storage.Exported     `json:"queues"`
	Outbox  storage.ExportedEDUs `json:"outbox"`
}

// reportExportEvery is how often the log tells how far an export is.
const reportExportEvery = 5 * time.Second

// Export moves everything that waits in the module's tables into those of an unmodified Dendrite, for a server that is to run
// without the module. What other servers refused stays where it is. The module need not be enabled in the section. It
// returns storage.ErrLocked while a server with the module runs on the database, and ErrInUse while others
// are connected to it, and ErrNoDatabase where there is none; then nothing has changed. After any other error, or a crash, it can be called again.
func Export(ctx context.Context, cfg *config.Dendrite, section todevicemodule.Config, options ExportOptions) (report ExportReport, err error) {
	d := &Dendrite{config: cfg, log: options.Log, cm: sqlutil.NewConnectionManager(nil, cfg.Global.DatabaseOptions)}
	if d.log == nil {
		d.log = logrus.WithField("component", "to_device")
	}
	own := d.databaseOptions(section.Database)
	for _, database := range []config.DatabaseOptions{own, d.orGlobal(cfg.SyncAPI.Database), d.orGlobal(cfg.FederationAPI.Database)} {
		if isMissingFile(database.ConnectionString) {
			return report, fmt.Errorf("%w: %s", ErrNoDatabase, database.ConnectionString)
		}
	}
	if !options.Force {
		if err = d.refuseOthers(ctx, own, d.orGlobal(cfg.SyncAPI.Database), d.orGlobal(cfg.FederationAPI.Database)); err != nil {
			return report, err
		}
	}
	store, err := d.Store(section.Database)
	if err != nil {
		return report, err
	}
	defer d.closeDatabases(own, d.orGlobal(cfg.SyncAPI.Database), d.orGlobal(cfg.FederationAPI.Database))
	there, err := store.Present(ctx)
	if err == nil && !there {
		err = d.refuseElsewhere(ctx, section.Database)
	}
	if err != nil || !there {
		return ExportReport{Nothing: err == nil}, err
	}
	lock, err := store.Lock(ctx)
	if err != nil {
		return report, err
	}
	report, err = d.export(ctx, section.Database, store)
	return report, errors.Join(err, lock.Release())
}

func (d *Dendrite) export(ctx context.Context, section todevicemodule.DatabaseConfig, store storage.Store) (report ExportReport, err error) {
	if err = store.Migrate(ctx); err != nil {
		return report, err
	}
	queue, err := d.ForeignQueue(section)
	if err != nil {
		return report, err
	}
	federation, err := d.foreign(section, d.config.FederationAPI.Database)
	if err != nil {
		return report, err
	}
	outbox := federation.outbox()
	for _, foreign := range []storage.Foreign{queue, outbox} {
		if err = foreign.Prepare(ctx); err != nil {
			return report, fmt.Errorf("preparing the host's tables: %w", err)
		}
	}
	if report.Queues, err = store.Export(ctx, queue, d.exportProgress("messages")); err != nil {
		return report, err
	}
	if report.Outbox, err = store.ExportOutbox(ctx, outbox, d.exportProgress("EDUs")); err != nil {
		return report, err
	}
	return report, federation.removeDoorbells(ctx)
}

// refuseElsewhere returns ErrElsewhere if the host's sequence stands where only the module puts it: the host itself would have to
// have stored four thousand million messages.
func (d *Dendrite) refuseElsewhere(ctx context.Context, section todevicemodule.DatabaseConfig) error {
	base, err := d.foreign(section, d.config.SyncAPI.Database)
	if err != nil {
		return err
	}
	query := `SELECT coalesce(max(last_value), 0) FROM pg_sequences WHERE schemaname = current_schema() AND sequencename = 'syncapi_send_to_device_id'`
	if !base.postgres {
		var kept bool // no table with AUTOINCREMENT was ever made otherwise
		err = base.db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence')`).Scan(&kept)
		if err != nil || !kept {
			return err
		}
		query = `SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'syncapi_send_to_device'`
	}
	var last types.Position
	if err = base.db.QueryRowContext(ctx, query).Scan(&last); err == nil && last >= ownStep {
		err = ErrElsewhere
	}
	return err
}

// exportProgress returns a storage.Progress that tells the log now and then.
func (d *Dendrite) exportProgress(what string) storage.Progress {
	reported := time.Now()
	return func(done, total int) {
		if now := time.Now(); now.Sub(reported) >= reportExportEvery {
			reported = now
			d.log.WithFields(logrus.Fields{"done": done, "total": total}).Infof("to_device: exporting %s", what)
		}
	}
}

// isMissingFile reports whether a connection string names a SQLite file that is not there. Opening it would make it.
func isMissingFile(connection config.DataSource) bool {
	path, err := sqlutil.ParseFileURI(connection)
	if err != nil {
		return false
	}
	_, err = os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// closeDatabases closes what the connection manager has opened of the databases, since it has no process to end with.
func (d *Dendrite) closeDatabases(databases ...config.DatabaseOptions) {
	for i := range databases {
		if db, _, err := d.cm.Connection(&databases[i]); err == nil && db != nil {
			_ = db.Close()
		}
	}
}
