//go:build !cgo

package sqlite

// The driver that needs cgo is not there to return errors.
func cgoResultCode(error) (int, bool) { return 0, false }
