package writer_test

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
)

// plainTables are two tables with the columns of the module's own.
type plainTables struct {
	db        *sql.DB
	exclusive *sync.Mutex // of the two that write; nil where they may at once
	atOnce    int         // rows of one statement
	position  int64
}

func newPlainTables(b *testing.B, store *testdb.Store, exclusive bool) *plainTables {
	store.Exec(b, `CREATE TABLE plain_messages (user_id TEXT NOT NULL, device_id TEXT NOT NULL, position BIGINT NOT NULL,
		sender TEXT NOT NULL, type TEXT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (user_id, device_id, position))`)
	store.Exec(b, `CREATE TABLE plain_transactions (user_id TEXT NOT NULL, device_id TEXT NOT NULL, event_type TEXT NOT NULL,
		transaction_id TEXT NOT NULL, expires_at BIGINT NOT NULL, PRIMARY KEY (user_id, device_id, event_type, transaction_id))`)
	if exclusive {
		// SQLite is faster row by row.
		return &plainTables{db: store.DB(), exclusive: &sync.Mutex{}, atOnce: 1}
	}
	return &plainTables{db: store.DB(), atOnce: 1000}
}

// run returns the time in which the rows of a round are inserted in the given number of commits and deleted in that of deletions.
func (p *plainTables) run(b *testing.B, l load, round, commits, deletions int) time.Duration {
	var messages, transactions [][]any
	for _, s := range l.all(round) {
		part := s.Parts[0]
		key := part.Transaction
		transactions = append(transactions, []any{key.UserID, key.DeviceID, key.EventType, key.TransactionID, p.position})
		for _, c := range part.Copies {
			p.position++
			messages = append(messages, []any{c.UserID, c.DeviceID, p.position, part.Sender, part.Type, string(c.Content)})
		}
	}
	inserted := make(chan [][]any, commits)
	started := time.Now()
	var group sync.WaitGroup
	group.Go(func() { p.deleteAll(b, inserted, (len(messages)+deletions-1)/deletions) })
	for n := range commits {
		of := share(messages, n, commits)
		p.transact(b, func(tx *sql.Tx) error {
			if err := p.each(tx, `INSERT INTO plain_messages VALUES `, "", of); err != nil {
				return err
			}
			return p.each(tx, `INSERT INTO plain_transactions VALUES `, "", share(transactions, n, commits))
		})
		inserted <- of
	}
	close(inserted)
	group.Wait()
	return time.Since(started)
}

// share is part n of so many of the rows.
func share(rows [][]any, n, parts int) [][]any {
	return rows[len(rows)*n/parts : len(rows)*(n+1)/parts]
}

// deleteAll deletes what was inserted, as soon as there is enough for one deletion.
func (p *plainTables) deleteAll(b *testing.B, inserted <-chan [][]any, atOnce int) {
	var keys [][]any
	drop := func() {
		p.transact(b, func(tx *sql.Tx) error {
			return p.each(tx, `DELETE FROM plain_messages WHERE (user_id, device_id, position) IN (VALUES `, ")", keys)
		})
		keys = nil
	}
	for rows := range inserted {
		for _, row := range rows {
			if keys = append(keys, row[:3]); len(keys) == atOnce {
				drop()
			}
		}
	}
	if len(keys) > 0 {
		drop()
	}
}

func (p *plainTables) transact(b *testing.B, f func(*sql.Tx) error) {
	if p.exclusive != nil {
		p.exclusive.Lock()
		defer p.exclusive.Unlock()
	}
	tx, err := p.db.Begin()
	if err == nil {
		err = f(tx)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		b.Error(err)
	}
}

// each runs a statement about many rows, some at once.
func (p *plainTables) each(tx *sql.Tx, before, after string, rows [][]any) error {
	var statement *sql.Stmt
	for size := 0; len(rows) > 0; {
		chunk := rows[:min(len(rows), p.atOnce)]
		rows = rows[len(chunk):]
		if size != len(chunk) {
			size = len(chunk)
			var err error
			if statement, err = tx.Prepare(before + placeholders(chunk) + after); err != nil {
				return err
			}
		}
		if _, err := statement.Exec(slices.Concat(chunk...)...); err != nil {
			return err
		}
	}
	return nil
}

func placeholders(rows [][]any) string {
	var text strings.Builder
	n := 0
	for i, row := range rows {
		separator := ", ("
		if i == 0 {
			separator = "("
		}
		for _, value := range row {
			n++
			text.WriteString(separator)
			separator = ", "
			if _, number := value.(int64); number { // whose type PostgreSQL has to be told in a list of rows
				fmt.Fprintf(&text, "CAST($%d AS BIGINT)", n)
			} else {
				fmt.Fprintf(&text, "$%d", n)
			}
		}
		text.WriteString(")")
	}
	return text.String()
}
