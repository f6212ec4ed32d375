//go:build !cgo

package sqlite_test

import _ "modernc.org/sqlite" // the driver of Dendrite built without cgo

const (
	driverName       = "sqlite"
	driverOptions    = "?_pragma=busy_timeout%3d10000"
	impatientOptions = "?_pragma=busy_timeout%3d1"
)
