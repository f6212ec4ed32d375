package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
	"github.com/matrix-org/dendrite/todevicemodule/storage/storagetest"
)

func TestAllocations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dendrite.db")
	storagetest.RunAllocations(t, func(t testing.TB) storage.Store {
		db := openDB(t, path)
		return sqlite.New(db, sqlite.NewWriter(db), path)
	}, storagetest.Allocations{
		Commit1: 110, Commit20: 640, Commit1000: 27000, MessagesNone: 60, Messages100: 1700,
	})
}
