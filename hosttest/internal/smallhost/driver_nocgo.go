//go:build !cgo

package smallhost

import _ "modernc.org/sqlite" // the driver of a build without cgo

const (
	sqliteDriver  = "sqlite"
	sqliteOptions = "?_pragma=busy_timeout%3d10000"
)
