package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// Prepared keeps the statements of the hot paths prepared on every connection that has run them: on PostgreSQL that
// spares a round trip and the planning each time. Its methods are safe for concurrent use.
type Prepared struct {
	db         *sql.DB
	classifier Classifier

	mu         sync.Mutex
	statements map[string]*sql.Stmt
}

// NewPrepared returns a Prepared without any statements.
func NewPrepared(db *sql.DB, classifier Classifier) *Prepared {
	return &Prepared{db: db, classifier: classifier, statements: make(map[string]*sql.Stmt)}
}

// Statement returns the statement with the given text. It may take a connection of its own, so it is called before
// a transaction begins: a pool of two connections may have none left then.
func (p *Prepared) Statement(ctx context.Context, text string) (*sql.Stmt, error) {
	p.mu.Lock()
	statement, ok := p.statements[text]
	p.mu.Unlock()
	if ok {
		return statement, nil
	}
	statement, err := p.db.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if first, ok := p.statements[text]; ok { // of another goroutine, which was faster
		_ = statement.Close() //nolint:sqlclosecheck // the other one is kept
		return first, nil
	}
	p.statements[text] = statement
	return statement, nil
}

// Statements returns several statements, as Statement does.
func (p *Prepared) Statements(ctx context.Context, texts ...string) ([]*sql.Stmt, error) {
	statements := make([]*sql.Stmt, len(texts))
	for i, text := range texts {
		var err error
		if statements[i], err = p.Statement(ctx, text); err != nil { //nolint:sqlclosecheck // it is kept
			return nil, err
		}
	}
	return statements, nil
}

// Query runs the statement outside of a transaction and calls each for every row.
func (p *Prepared) Query(ctx context.Context, text string, args []any, each func(*sql.Rows) error) error {
	statement, err := p.Statement(ctx, text) //nolint:sqlclosecheck // it is kept
	if err != nil {
		return err
	}
	rows, err := statement.QueryContext(ctx, args...)
	return p.Checked(ctx, eachRow(rows, err, each), text)
}

// Checked returns the error that statements ended with. After a fault they are prepared anew: a table may have been changed
// beneath them.
func (p *Prepared) Checked(ctx context.Context, err error, texts ...string) error {
	if !errors.Is(Translate(ctx, p.classifier, "", err), storage.ErrFault) {
		return err
	}
	for _, text := range texts {
		p.mu.Lock()
		statement := p.statements[text]
		delete(p.statements, text)
		p.mu.Unlock()
		if statement != nil {
			_ = statement.Close() // waits for those who run it
		}
	}
	return err
}
