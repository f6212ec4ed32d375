package host

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/matrix-org/dendrite/setup/config"
)

const (
	// othersPatience is how long a connection may linger whose process has just ended.
	othersPatience = 3 * time.Second
	othersPoll     = 100 * time.Millisecond
)

// Others' sessions are shown without their backend_type to roles with few rights. Those without a user are the server's own.
const others = `
	SELECT count(*), coalesce(min(pid), 0), coalesce(min(application_name), '') FROM pg_stat_activity
	WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
		AND coalesce(backend_type, 'client backend') = 'client backend'`

// refuseOthers returns ErrInUse if others are connected to one of the PostgreSQL databases: an unmodified Dendrite takes no
// lock by which it could be known. Nothing of our own may be connected yet.
func (d *Dendrite) refuseOthers(ctx context.Context, databases ...config.DatabaseOptions) error {
	looked := make(map[config.DataSource]bool)
	for i := range databases {
		connection := databases[i].ConnectionString
		if !connection.IsPostgres() || looked[connection] {
			continue
		}
		looked[connection] = true
		if err := refuseOthersIn(ctx, string(connection)); err != nil {
			return err
		}
	}
	return nil
}

func refuseOthersIn(ctx context.Context, connection string) error {
	db, err := sql.Open("postgres", connection)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // nothing was written
	db.SetMaxOpenConns(1)
	for deadline := time.Now().Add(othersPatience); ; {
		var n, pid int
		var application string
		if err = db.QueryRowContext(ctx, others).Scan(&n, &pid, &application); err != nil {
			return fmt.Errorf("looking for others in the database: %w", err)
		}
		if n == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: it has %d more connections (one of them by session %d, application %q): stop Dendrite and "+
				"whatever else is connected, or use --force if none of them is a Dendrite", ErrInUse, n, pid, application)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(othersPoll):
		}
	}
}
