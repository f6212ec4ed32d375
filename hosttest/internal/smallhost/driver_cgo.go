//go:build cgo

package smallhost

import _ "github.com/mattn/go-sqlite3" // the driver of a build with cgo

const (
	sqliteDriver  = "sqlite3"
	sqliteOptions = ""
)
