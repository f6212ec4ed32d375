package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/gofrs/flock"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

var errReleased = errors.New("the lock was released")

// Lock implements storage.Store with a lock on a file beside the database: it ends with the process,
// whatever way that ends.
func (s *store) Lock(ctx context.Context) (storage.Lock, error) {
	l, err := s.takeLock(ctx)
	if err != nil {
		return nil, sqlstore.Translate(ctx, classifier{}, "lock", err)
	}
	return l, nil
}

func (s *store) takeLock(ctx context.Context) (storage.Lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.path == "" {
		return &fileLock{}, nil
	}
	path, err := lockFile(s.path, ".todevice.lock")
	if err != nil {
		return nil, err
	}
	l := &fileLock{path: path}
	return l, l.take()
}

// lockFile follows symbolic links, as SQLite does: two names of one database share one lock.
func lockFile(database, suffix string) (string, error) {
	resolved, err := filepath.EvalSymlinks(database)
	if errors.Is(err, fs.ErrNotExist) { // SQLite makes the file when it is first used
		var directory string
		directory, err = filepath.EvalSymlinks(filepath.Dir(database))
		resolved = filepath.Join(directory, filepath.Base(database))
	}
	if err != nil {
		return "", err
	}
	return resolved + suffix, nil
}

type fileLock struct {
	path string // empty if the database is in memory

	mutex    sync.Mutex
	file     *flock.Flock
	released bool
}

// Check implements storage.Lock.
func (l *fileLock) Check(ctx context.Context) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return sqlstore.Translate(ctx, classifier{}, "check the lock", l.check())
}

func (l *fileLock) check() error {
	if l.released {
		return errReleased
	}
	if l.path == "" || l.held() {
		return nil
	}
	return l.take()
}

// held tells whether the locked file still stands at its path; if it was removed, another process
// could lock a new one.
func (l *fileLock) held() bool {
	if l.file == nil || !l.file.Locked() {
		return false
	}
	locked, err := l.file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(l.path)
	return err == nil && os.SameFile(locked, there)
}

func (l *fileLock) take() error {
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file = flock.New(l.path)
	locked, err := l.file.TryLock()
	if err != nil {
		return err
	}
	if !locked {
		return fmt.Errorf("%w; only one process may do so: stop the other one first (it holds a lock on %s)",
			storage.ErrLocked, l.path)
	}
	return nil
}

// Release implements storage.Lock.
func (l *fileLock) Release() error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.released = true
	if l.file == nil {
		return nil
	}
	return sqlstore.Translate(context.Background(), classifier{}, "release the lock", l.file.Close())
}
