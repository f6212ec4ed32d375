package sqlite

import (
	"database/sql/driver"
	"errors"
)

// Primary result codes, https://www.sqlite.org/rescode.html.
const (
	codeBusy      = 5
	codeLocked    = 6
	codeNoMemory  = 7
	codeInterrupt = 9
	codeIO        = 10
	codeFull      = 13
	codeCantOpen  = 14
	codeProtocol  = 15

	codeTooBig     = 18
	codeConstraint = 19
	codeMismatch   = 20
)

type classifier struct{}

func (classifier) Transient(err error) bool {
	if errors.Is(err, driver.ErrBadConn) {
		return true
	}
	code, ok := resultCode(err)
	if !ok {
		return false
	}
	switch code & 0xff { // an extended code has the primary one in its low byte
	case codeBusy, codeLocked, codeNoMemory, codeInterrupt, codeIO, codeFull, codeCantOpen, codeProtocol:
		return true
	}
	return false
}

// Refuses knows the codes of what is about the values of a row. Every other one is about the database or a statement.
func (classifier) Refuses(err error) bool {
	code, ok := resultCode(err)
	if !ok {
		return false
	}
	switch code & 0xff {
	case codeTooBig, codeConstraint, codeMismatch:
		return true
	}
	return false
}

// Redact has nothing to do: SQLite's messages name tables and columns, never values.
func (classifier) Redact(err error) error { return err }

func resultCode(err error) (int, bool) {
	var modernc interface {
		error
		Code() int
	}
	if errors.As(err, &modernc) {
		return modernc.Code(), true
	}
	return cgoResultCode(err)
}
