//go:build cgo

package sqlite_test

import _ "github.com/mattn/go-sqlite3" // the driver of Dendrite built with cgo

const (
	driverName       = "sqlite3"
	driverOptions    = ""
	impatientOptions = "?_busy_timeout=1"
)
