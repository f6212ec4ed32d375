//go:build !cgo

package testdb

import _ "modernc.org/sqlite" // the driver of a host built without cgo

const (
	sqliteDriver  = "sqlite"
	sqliteOptions = "?_pragma=busy_timeout%3d10000" // as the host opens it
)
