package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/internal/sqlstore"
)

// releaseTimeout bounds Release when the server does not answer; it then closes the connection.
const releaseTimeout = 5 * time.Second

const tryLock = `
	SELECT pg_try_advisory_lock(hashtextextended('todevice_writer ' || coalesce(current_schema(), ''), 0)),
		pid, extract(epoch FROM backend_start)::text
	FROM pg_stat_activity WHERE pid = pg_backend_pid()`

const unlock = `
	SELECT pg_advisory_unlock(hashtextextended('todevice_writer ' || coalesce(current_schema(), ''), 0))`

const endSession = `
	SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE pid = $1 AND extract(epoch FROM backend_start)::text = $2`

var (
	errLocked = fmt.Errorf("%w; only one process may do so for a schema: stop the other one first (its "+
		"session holds an advisory lock in pg_locks)", storage.ErrLocked)
	errOldSession = fmt.Errorf("%w: the lock's lost session has not ended yet", storage.ErrTransient)
	errReleased   = errors.New("the lock was released")
)

// Lock implements storage.Store with an advisory lock of a session of its own: it ends with the
// process, whatever way that ends.
func (s *store) Lock(ctx context.Context) (storage.Lock, error) {
	l := &advisoryLock{db: s.db}
	if err := l.take(ctx); err != nil {
		return nil, sqlstore.Translate(ctx, classifier{}, "lock", err)
	}
	return l, nil
}

// session names one connection on the server for ever; a process ID alone is used again.
type session struct {
	pid     int
	started string
}

type advisoryLock struct {
	db *sql.DB

	mutex    sync.Mutex
	conn     *sql.Conn // nil while the lock is not held
	session  session   // the last one that held it
	released bool
}

// Check implements storage.Lock.
func (l *advisoryLock) Check(ctx context.Context) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.released {
		return errReleased
	}
	if err := ctx.Err(); err != nil {
		return sqlstore.Translate(ctx, classifier{}, "check the lock", err)
	}
	if l.conn != nil {
		var one int
		if err := l.conn.QueryRowContext(ctx, `SELECT 1`).Scan(&one); err == nil {
			return nil
		}
		l.discard()
	}
	return sqlstore.Translate(ctx, classifier{}, "check the lock", l.take(ctx))
}

// Release implements storage.Lock.
func (l *advisoryLock) Release() error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.released = true
	if l.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	var unlocked bool
	if err := l.conn.QueryRowContext(ctx, unlock).Scan(&unlocked); err != nil || !unlocked {
		l.discard() // the lock ends with the session
		return nil
	}
	conn := l.conn
	l.conn = nil
	return sqlstore.Translate(ctx, classifier{}, "release the lock", conn.Close())
}

func (l *advisoryLock) take(ctx context.Context) error {
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return err
	}
	l.conn = conn
	lingered, err := l.endLost(ctx)
	if err != nil {
		l.discard()
		return err
	}
	var locked bool
	var current session
	if err = conn.QueryRowContext(ctx, tryLock).Scan(&locked, &current.pid, &current.started); err != nil {
		l.discard() // the answer may be lost after the lock was taken
		return err
	}
	if locked {
		l.session = current
		return nil
	}
	l.conn = nil
	if err = conn.Close(); err != nil {
		return err
	}
	if lingered {
		return errOldSession
	}
	return errLocked
}

// endLost ends the session that held the lock before. The server may not have noticed yet that
// its connection is lost, and would keep the lock from us.
func (l *advisoryLock) endLost(ctx context.Context) (lingered bool, err error) {
	if l.session.pid == 0 {
		return false, nil
	}
	err = l.conn.QueryRowContext(ctx, endSession, l.session.pid, l.session.started).Scan(&lingered)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return true, err
}

// discard closes the connection for good; it must not go back to the pool with a lock.
func (l *advisoryLock) discard() {
	_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = l.conn.Close()
	l.conn = nil
}
