// Package pgtest gives tests a real PostgreSQL: the one named by the environment variable
// TODEVICE_TEST_POSTGRES (a connection URL of a role that may create databases), or a throw-away
// server started from the installed binaries.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq" // the driver of the databases handed out
)

// EnvURL names the environment variable with the connection URL of a PostgreSQL to use.
const EnvURL = "TODEVICE_TEST_POSTGRES"

var shared struct {
	sync.Mutex
	server *Server
	err    error
}

var databases atomic.Int64

// Main runs the tests of a package and removes the throw-away server they may have started. Use
// it as: func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }.
func Main(m *testing.M) int {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		if err := shared.server.Remove(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// NewSchema returns the connection URL of a schema of the test's own in a shared database. The
// schema is dropped when the test ends.
func NewSchema(t testing.TB) string {
	t.Helper()
	base := baseURL(t)
	name := uniqueName()
	execute(t, base, "CREATE SCHEMA "+name)
	t.Cleanup(func() { execute(t, base, "DROP SCHEMA "+name+" CASCADE") })
	return withQuery(t, base, "search_path", name)
}

// NewDatabase returns the connection URL of a database of the test's own, for tests that run
// whole servers. The database is dropped, and connections to it are cut, when the test ends.
func NewDatabase(t testing.TB) string {
	t.Helper()
	base := baseURL(t)
	name := uniqueName()
	execute(t, base, "CREATE DATABASE "+name)
	t.Cleanup(func() { execute(t, base, "DROP DATABASE "+name+" WITH (FORCE)") })
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

func uniqueName() string {
	return fmt.Sprintf("todevice_test_%d_%d", os.Getpid(), databases.Add(1))
}

func baseURL(t testing.TB) string {
	t.Helper()
	if fromEnv := os.Getenv(EnvURL); fromEnv != "" {
		return fromEnv
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = Start()
	}
	if shared.err != nil {
		t.Fatalf("no PostgreSQL for the tests: %v", shared.err)
	}
	return shared.server.URL
}

func execute(t testing.TB, dsn, statement string) {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck
	if _, err = db.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func withQuery(t testing.TB, dsn, key, value string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(key, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// Server is a throw-away PostgreSQL on a free loopback port, in a directory of its own.
type Server struct {
	// URL connects as the superuser to the database "postgres".
	URL string

	bin, dir   string
	settings   []string
	port       int
	credential *syscall.Credential
	process    *exec.Cmd
	exited     chan struct{}
}

// Start makes a new data directory and starts a server on it. PostgreSQL refuses to run as root,
// so a root process runs it as the user "postgres" or "nobody".
func Start() (*Server, error) { return StartIn("") }

// StartIn is Start with the data below the directory given, which the user that runs it must be able to enter; empty means
// the one for temporary files. The settings, name=value, come in place of the usual ones.
func StartIn(parent string, settings ...string) (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, "todevice-pg-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir, settings: settings}
	if err = s.dropPrivileges(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	out, err := s.command("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync").CombinedOutput()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("initdb: %w\n%s", err, out), os.RemoveAll(dir))
	}
	if s.port, err = freePort(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.URL = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", s.port)
	if err = s.Run(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// Run starts the server process, after Start only if Kill or Stop ended it, and returns once it
// answers.
func (s *Server) Run() error {
	logPath := filepath.Join(s.dir, "log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.port), "-k", s.dir, "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=400"}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	s.process = s.command("postgres", args...)
	s.process.Stdout, s.process.Stderr = log, log
	if err = s.process.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func(process *exec.Cmd, exited chan struct{}) {
		_ = process.Wait()
		close(exited)
	}(s.process, s.exited)
	return s.waitReady(logPath)
}

func (s *Server) waitReady(logPath string) error {
	db, err := sql.Open("postgres", s.URL)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		if err = db.PingContext(ctx); err == nil {
			return nil
		}
		select {
		case <-s.exited:
			out, _ := os.ReadFile(logPath)
			return fmt.Errorf("postgres exited at start:\n%s", out)
		case <-ctx.Done():
			return fmt.Errorf("postgres does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the server in PostgreSQL's fast mode: open transactions are rolled back.
func (s *Server) Stop() error { return s.signal(syscall.SIGINT) }

// Kill ends the server at once, as a crash would: the next Run recovers from the log.
func (s *Server) Kill() error { return s.signal(syscall.SIGQUIT) }

// Ended tells whether the process has ended, by itself or otherwise.
func (s *Server) Ended() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

func (s *Server) signal(sig syscall.Signal) error {
	if err := s.process.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.exited
	return nil
}

// Remove stops the server and deletes its directory.
func (s *Server) Remove() error {
	return errors.Join(s.signal(syscall.SIGQUIT), os.RemoveAll(s.dir))
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	// The server must not outlive a test binary that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.credential, Pdeathsig: syscall.SIGQUIT}
	return cmd
}

func (s *Server) dropPrivileges() error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return os.Chown(s.dir, int(uid), int(gid))
	}
	return errors.New("PostgreSQL does not run as root, and there is no user \"postgres\" or \"nobody\" to run it as")
}

func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(real), nil
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", fmt.Errorf("set %s to the URL of a PostgreSQL server, or install its binaries (Debian: apt-get install postgresql)", EnvURL)
	}
	version := func(path string) int {
		v, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return v
	}
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	return filepath.Dir(found[0]), nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close() //nolint:errcheck
	return l.Addr().(*net.TCPAddr).Port, nil
}
