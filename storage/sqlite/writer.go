package sqlite

import (
	"database/sql"
	"sync"
)

// Writer lets one write at a time through to a database file, whoever in the process asks for
// it: SQLite has one write lock for a file.
type Writer interface {
	// Transact begins a transaction, runs f in it and commits it, or rolls back and returns f's error.
	Transact(f func(*sql.Tx) error) error
	// Exclude runs f while no transaction is open. f opens its own.
	Exclude(f func() error) error
}

// NewWriter returns a Writer for a database that nobody else in the process writes to.
func NewWriter(db *sql.DB) Writer { return &mutexWriter{db: db} }

type mutexWriter struct {
	db    *sql.DB
	mutex sync.Mutex
}

func (w *mutexWriter) Transact(f func(*sql.Tx) error) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	if err = f(tx); err != nil {
		_ = tx.Rollback() // SQLite may have rolled back already
		return err
	}
	return tx.Commit()
}

func (w *mutexWriter) Exclude(f func() error) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return f()
}
