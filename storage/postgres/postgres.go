// Package postgres keeps send-to-device messages in PostgreSQL 12 or newer.
package postgres

import (
	"context"
	"database/sql"

	"github.com/lib/pq"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

type store struct {
	*sqlstore.Store
	db *sql.DB
}

// New returns a store in the first schema of db's search_path. The driver of db is lib/pq, and it may
// open two connections or more: Lock keeps one for as long as it is held, and it doesn't survive a
// pooler that hands out another session for each transaction.
func New(db *sql.DB) storage.Store {
	// What looks up rows is planned each time. A plan that is kept was made for a table as it was, which may have been empty, until
	// the server next analyses it.
	return &store{Store: sqlstore.New(db, dialect{db: db, prepared: sqlstore.NewPrepared(db, classifier{})}, nil), db: db}
}

type dialect struct {
	classifier
	db       *sql.DB
	prepared *sqlstore.Prepared
}

func (d dialect) Transact(ctx context.Context, f func(context.Context, *sql.Tx) error) error {
	// At a stricter level a wait for the position record would end in a serialisation failure.
	tx, err := d.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	if err = f(ctx, tx); err != nil {
		_ = tx.Rollback() // if it fails, the connection is lost and the server rolls back
		return err
	}
	return tx.Commit()
}

func (dialect) List(values []string) (any, error) { return pq.Array(values), nil }

func (dialect) Keys(keys []types.TransactionKey) ([]any, error) {
	columns := make([][]string, 4)
	for _, key := range keys {
		for i, value := range []string{key.UserID, key.DeviceID, key.EventType, key.TransactionID} {
			columns[i] = append(columns[i], value)
		}
	}
	return []any{pq.Array(columns[0]), pq.Array(columns[1]), pq.Array(columns[2]), pq.Array(columns[3])}, nil
}
