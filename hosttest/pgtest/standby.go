package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Standby starts a server that follows this one, with the same settings and its data beside this one's. From its return on no commit of this server is
// answered before the standby has it on disk, unless whoever waits for one ends its connection or cancels: then the commit stands here alone.
func (s *Server) Standby(ctx context.Context) (*Server, error) {
	dir, err := os.MkdirTemp(filepath.Dir(s.dir), "todevice-pg-")
	if err != nil {
		return nil, err
	}
	standby := &Server{bin: s.bin, dir: dir, settings: s.settings}
	if err = standby.follow(s); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err = s.awaitStandby(ctx); err != nil {
		return nil, errors.Join(err, standby.Remove())
	}
	return standby, nil
}

func (s *Server) follow(primary *Server) (err error) {
	if err = s.dropPrivileges(); err != nil {
		return err
	}
	if err = s.Tool(nil, nil, "pg_basebackup", "--pgdata="+s.data(), "--dbname="+primary.URL, "--checkpoint=fast", "--no-sync", "--write-recovery-conf"); err != nil {
		return err
	}
	if s.port, err = freePort(); err != nil {
		return err
	}
	s.URL = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", s.port)
	return s.Run()
}

// awaitStandby has commits wait for whatever standby there is, and returns once they do.
func (s *Server) awaitStandby(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, statement := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if err := s.execute(ctx, statement); err != nil {
			return err
		}
	}
	for {
		ready, err := s.hasStandby(ctx)
		if err != nil {
			return err
		}
		if ready {
			// The checkpointer is who tells the others of the setting. It looks at it before each checkpoint.
			return s.execute(ctx, "CHECKPOINT")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the standby does not keep up: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) hasStandby(ctx context.Context) (ready bool, err error) {
	db, err := sql.Open("postgres", s.URL)
	if err != nil {
		return false, err
	}
	defer db.Close() //nolint:errcheck
	err = db.QueryRowContext(ctx, `SELECT current_setting('synchronous_standby_names') = '*' AND EXISTS
		(SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync')`).Scan(&ready)
	return ready, err
}

func (s *Server) execute(ctx context.Context, statement string) error {
	db, err := sql.Open("postgres", s.URL)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck
	if _, err = db.ExecContext(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// GiveWay ends the server as the loss of its machine would, promotes a standby of its, and becomes that one: it has another URL. The data
// of the old one is deleted.
func (s *Server) GiveWay(standby *Server) error {
	if err := s.crash(); err != nil {
		return err
	}
	// A statement that asks for it can be in the way of what is still replayed, which then cancels it after half a minute.
	if err := standby.Tool(nil, nil, "pg_ctl", "promote", "--wait", "--pgdata="+standby.data()); err != nil {
		return err
	}
	old := s.dir
	*s = *standby
	return os.RemoveAll(old)
}

// crash ends all processes of the server at the same time.
func (s *Server) crash() error {
	pid := s.process.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil { // it starts no more of them
		return err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return err
	}
	errs := []error{syscall.Kill(pid, syscall.SIGKILL)}
	for _, field := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(field)
		if err == nil {
			err = syscall.Kill(child, syscall.SIGKILL)
		}
		if !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	<-s.exited
	return errors.Join(errs...)
}
