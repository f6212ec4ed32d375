package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstoretest"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
)

func TestMigrateWaitsForAnotherProcess(t *testing.T) {
	url := pgtest.NewSchema(t)
	store := postgres.New(openDB(t, url))
	other := begin(t, openDB(t, url),
		`SELECT pg_advisory_xact_lock(hashtextextended('todevice_migrations ' || current_schema(), 0))`)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := store.Migrate(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got the error %v beside another migration", err)
	}
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := store.Migrate(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestUpgrade(t *testing.T) {
	db := openDB(t, pgtest.NewSchema(t))
	sqlstoretest.Upgrade(t, db, goose.DialectPostgres, postgres.Migrations, postgres.New(db))
}

// The version table is the module's own, and nothing else is recorded or made.
func TestMigrateMakesOnlyItsOwnTables(t *testing.T) {
	url := pgtest.NewSchema(t)
	db := openDB(t, url)
	newStore(t, url)
	var foreign int
	if err := db.QueryRow(`SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace
		AND relname NOT LIKE 'todevice\_%'`).Scan(&foreign); err != nil || foreign != 0 {
		t.Errorf("%d relations have other names (%v)", foreign, err)
	}
	if _, err := db.Exec(`INSERT INTO todevice_position VALUES (2, 'x', 5)`); err == nil {
		t.Error("a second position record was accepted")
	}
}
