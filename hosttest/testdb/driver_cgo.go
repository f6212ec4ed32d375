//go:build cgo

package testdb

import _ "github.com/mattn/go-sqlite3" // the driver of a host built with cgo

const (
	sqliteDriver  = "sqlite3"
	sqliteOptions = ""
)
