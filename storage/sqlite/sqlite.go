// Package sqlite keeps send-to-device messages in a SQLite 3.43 database, or newer, that the host
// opened, with the driver mattn/go-sqlite3 or modernc.org/sqlite.
package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

type store struct {
	*sqlstore.Store
	db     *sql.DB
	writer Writer
	path   string
}

// New returns a store in db, which writes through writer alone. path is the database file, beside
// which the lock files stand; it is empty for a database in memory, which needs no lock.
func New(db *sql.DB, writer Writer, path string) storage.Store {
	prepared := sqlstore.NewPrepared(db, classifier{})
	return &store{
		Store:  sqlstore.New(db, dialect{db: db, writer: writer, prepared: prepared}, prepared),
		db:     db,
		writer: writer,
		path:   path,
	}
}

type dialect struct {
	classifier
	db       *sql.DB
	writer   Writer
	prepared *sqlstore.Prepared
}

// Transact looks at the context once the writer's turn has come, and then no more: an interrupted
// statement would end the transaction beneath database/sql, and these statements are short.
func (d dialect) Transact(ctx context.Context, f func(context.Context, *sql.Tx) error) error {
	return d.writer.Transact(func(tx *sql.Tx) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return f(context.WithoutCancel(ctx), tx)
	})
}

func (dialect) List(values []string) (any, error) { return toJSON(values) }

func (dialect) Keys(keys []types.TransactionKey) ([]any, error) {
	rows := make([][4]string, len(keys))
	for i, key := range keys {
		rows[i] = [4]string{key.UserID, key.DeviceID, key.EventType, key.TransactionID}
	}
	list, err := toJSON(rows)
	return []any{list}, err
}

func toJSON(value any) (string, error) {
	text, err := json.Marshal(value)
	return string(text), err
}
