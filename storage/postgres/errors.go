package postgres

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"

	"github.com/lib/pq"
)

type classifier struct{}

func (classifier) Transient(err error) bool {
	var fromServer *pq.Error
	if errors.As(err, &fromServer) {
		return transientState(fromServer.SQLState())
	}
	var network net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &network)
}

func transientState(state string) bool {
	switch state {
	case "25006", // read-only: a standby that is not promoted yet
		"25P03",                                     // idle in a transaction for too long
		"55P03",                                     // lock_timeout
		"57014",                                     // statement_timeout
		"57P01", "57P02", "57P03", "57P04", "57P05": // the server or the session ends, or starts
		return true
	}
	if len(state) != 5 {
		return false
	}
	switch state[:2] {
	case "08", // connection
		"40", // rolled back: serialisation, deadlock
		"53", // disk, memory or connections used up
		"58": // the system beneath the server
		return true
	}
	return false
}

// Refuses knows the classes of what is about the values of a row. Every other state is about the database: its indexes,
// tables, limits, rights.
func (classifier) Refuses(err error) bool {
	var fromServer *pq.Error
	if !errors.As(err, &fromServer) || len(fromServer.SQLState()) != 5 {
		return false
	}
	switch fromServer.SQLState()[:2] {
	case "21", // more rows than there may be
		"22", // the value itself
		"23": // a constraint
		return true
	}
	return false
}

// Redact drops what may quote a row: the detail always, the message where it is about a value.
func (classifier) Redact(err error) error {
	fromServer, ok := err.(*pq.Error) //nolint:errorlint // only as the driver returns it
	if !ok {
		return err
	}
	shown := &pq.Error{
		Severity:   fromServer.Severity,
		Code:       fromServer.Code,
		Message:    fromServer.Message,
		Table:      fromServer.Table,
		Constraint: fromServer.Constraint,
	}
	if state := fromServer.SQLState(); len(state) == 5 && state[:2] == "22" {
		shown.Message = "a value was refused"
	}
	return shown
}
