//go:build cgo

package sqlite

import (
	"errors"

	"github.com/mattn/go-sqlite3"
)

func cgoResultCode(err error) (int, bool) {
	var mattn sqlite3.Error
	if errors.As(err, &mattn) {
		return int(mattn.Code), true
	}
	return 0, false
}
