package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

const (
	// How long a server may take to answer after its start, and to end after a signal. Only a
	// fault takes as long; with the race detector on two busy cores a start takes seconds.
	startDeadline = 2 * time.Minute
	stopDeadline  = time.Minute

	raceExitCode = 66
)

// transport is used by every client. The limits of the default one would make a load of many
// clients open a connection for each request.
var transport = &http.Transport{MaxIdleConnsPerHost: 200, MaxIdleConns: 1000}

// Server is a server process together with the data it keeps from one run to the next.
type Server struct {
	Backend Backend
	// URL is where the client-server API answers. It stays the same from one run to the next.
	URL string

	home    string // configuration, log, streams
	binary  string
	dir     string // SQLite files
	name    string // in user IDs, and for federation
	address string
	// federation is the address on which it listens for other servers.
	federation string
	postgres   string
	tls        []string // flags
	env        []string

	mu      sync.Mutex
	process *exec.Cmd
	exited  chan struct{} // closed when the process has ended
	exitErr error
	ready   chan struct{} // closed when the process answers
}

// New writes what a server needs into a directory that outlives it; Start starts it. On PostgreSQL the options name its
// database.
func New(b Backend, home string, o Options) (*Server, error) {
	address, err := remote.FreeAddress()
	if err != nil {
		return nil, err
	}
	s := &Server{
		Backend: b, URL: "http://" + address, home: home, dir: home, name: serverName, address: address,
		postgres: o.Postgres, env: o.Env, ready: make(chan struct{}),
	}
	if s.binary, err = o.binary(); err != nil {
		return nil, err
	}
	if o.Federation {
		if err = s.federate(o.Behind); err != nil {
			return nil, err
		}
	}
	if o.DatabaseOf != nil {
		s.dir, s.postgres = o.DatabaseOf.dir, o.DatabaseOf.postgres
	}
	return s, s.writeConfig(o)
}

// StartServer starts a server of the test's own, and ends it with the test.
func StartServer(t testing.TB, b Backend, o Options) *Server {
	t.Helper()
	s := NewServer(t, b, o)
	s.MustStart(t)
	return s
}

// NewServer makes a server of the test's own without starting it.
func NewServer(t testing.TB, b Backend, o Options) *Server {
	t.Helper()
	if b == Postgres && o.Postgres == "" && o.DatabaseOf == nil {
		o.Postgres = pgtest.NewDatabase(t)
	}
	s, err := New(b, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
		s.report(t, 0)
	})
	return s
}

var shared = struct {
	sync.Mutex
	servers map[sharedKey]*Server
}{servers: map[sharedKey]*Server{}}

type sharedKey struct {
	backend Backend
	role    string
}

// SharedServer returns the server for all tests that keep apart by their users. A test may kill
// and restart it: the tests of one database run one after the other.
func SharedServer(t testing.TB, b Backend) *Server {
	t.Helper()
	return sharedServer(t, sharedKey{b, "alone"}, Options{})
}

func sharedServer(t testing.TB, key sharedKey, o Options) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	b, s := key.backend, shared.servers[key]
	if s == nil {
		home, err := os.MkdirTemp(workDir, string(b)+"-")
		if err == nil && b == Postgres {
			o.Postgres, err = CreateDatabase()
		}
		if err == nil {
			s, err = New(b, home, o)
		}
		if err != nil {
			t.Fatal(err)
		}
		shared.servers[key] = s
	}
	logged := s.logSize()
	t.Cleanup(func() { s.report(t, logged) })
	if !s.running() {
		s.MustStart(t)
	}
	return s
}

// stopShared ends the shared servers as an operator would, so that a race found by the detector
// or a stop that hangs is seen.
func stopShared() error {
	shared.Lock()
	defer shared.Unlock()
	var errs []error
	for key, s := range shared.servers {
		if s.running() {
			errs = append(errs, s.Stop())
		}
		if races := s.races(); races != "" {
			errs = append(errs, fmt.Errorf("data races in the %s server:\n%s", key.backend, races))
		}
		if key.backend == Postgres {
			errs = append(errs, DropDatabase(s.postgres))
		}
	}
	return errors.Join(errs...)
}

// MustStart starts the server and fails the test if it does not come up.
func (s *Server) MustStart(t testing.TB) {
	t.Helper()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
}

// Start starts the process and returns when it answers.
func (s *Server) Start() error {
	if err := s.launch(); err != nil {
		return err
	}
	return s.awaitAnswer()
}

// awaitAnswer returns when a process that was launched answers, or has ended.
func (s *Server) awaitAnswer() error {
	ctx, cancel := context.WithTimeout(context.Background(), startDeadline)
	defer cancel()
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/_matrix/client/versions", nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK && s.federates() {
				s.mu.Lock()
				close(s.ready)
				s.mu.Unlock()
				return nil
			}
		}
		select {
		case <-s.exited:
			return fmt.Errorf("the server ended at its start: %w\n%s", s.exitErr, s.logTail(0))
		case <-ctx.Done():
			return fmt.Errorf("the server did not answer within %s\n%s", startDeadline, s.logTail(0))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// federates tells whether other servers can reach this one, unless it has no name for them. The two listeners
// come up one after the other.
func (s *Server) federates() bool {
	if s.tls == nil {
		return true
	}
	conn, err := net.Dial("tcp", s.federation)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// launch starts the process without waiting for it to answer.
func (s *Server) launch() error {
	log, err := os.OpenFile(s.path("server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck
	cmd := exec.Command(s.binary, append([]string{
		"-config", s.path("dendrite.yaml"), "-http-bind-address", s.address, "-really-enable-open-registration",
	}, s.tls...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.home, log, log
	cmd.Env = append(append(os.Environ(), s.env...), "GORACE=log_path="+s.path("race")+fmt.Sprintf(" exitcode=%d", raceExitCode))
	// The server must not outlive a test binary that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err = cmd.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	exited := make(chan struct{})
	s.process, s.exited = cmd, exited
	select {
	case <-s.ready: // of a process that ended by itself, or as it began to answer
		s.ready = make(chan struct{})
	default:
	}
	go func() {
		s.exitErr = cmd.Wait()
		close(exited)
	}()
	return nil
}

// Kill ends the process at once, as a crash would. It may be called on a server that has ended.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop asks the process to end, as an operator would, and returns an error if it does not end
// well.
func (s *Server) Stop() error {
	if err := s.end(syscall.SIGTERM); err != nil {
		return err
	}
	if s.exitErr != nil {
		return fmt.Errorf("the server did not end well: %w\n%s", s.exitErr, s.logTail(0))
	}
	return nil
}

func (s *Server) end(signal syscall.Signal) error {
	s.mu.Lock()
	process, exited := s.process, s.exited
	select {
	case <-s.ready:
		s.ready = make(chan struct{})
	default:
	}
	s.mu.Unlock()
	if process == nil {
		return nil
	}
	if err := process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-exited:
		transport.CloseIdleConnections()
		return nil
	case <-time.After(stopDeadline):
		stacks := s.dumpStacks()
		return fmt.Errorf("the server did not end within %s of %s\n%s", stopDeadline, signal, stacks)
	}
}

// dumpStacks ends a server that hangs in the way that shows where.
func (s *Server) dumpStacks() string {
	before := s.logSize()
	_ = s.process.Process.Signal(syscall.SIGQUIT)
	select {
	case <-s.exited:
	case <-time.After(stopDeadline):
		_ = s.process.Process.Kill()
		<-s.exited
	}
	return s.logTail(before)
}

// Restart kills the server and starts it again on the same data.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	s.MustStart(t)
}

// Ready returns a channel that is closed when the server answers: what a client waits for before
// it tries again.
func (s *Server) Ready() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// WaitExit waits for the process to end by itself and returns its exit code and what it printed.
func (s *Server) WaitExit(t testing.TB) (code int, output string) {
	t.Helper()
	select {
	case <-s.exited:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ready = make(chan struct{})
		return s.process.ProcessState.ExitCode(), s.logTail(0)
	case <-time.After(startDeadline):
		t.Fatalf("the server is still running, it should have ended\n%s", s.logTail(0))
		return 0, ""
	}
}

// PID returns the process ID of a server that runs.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Process.Pid
}

func (s *Server) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// report prints the log of a failed test, and fails a test whose server ran into a data race or
// panicked.
func (s *Server) report(t testing.TB, from int64) {
	t.Helper()
	if panics := s.panics(from); panics != "" {
		t.Errorf("the server panicked:\n%s", panics)
	}
	if races := s.races(); races != "" {
		t.Errorf("data races in the server:\n%s", races)
	}
	if t.Failed() {
		t.Logf("log of the %s server:\n%s", s.Backend, s.logTail(from))
	}
}

// panics returns the first panic in the log after an offset, with as many lines as show where it was. How the host ends a start without
// its database or NATS is none: it panics with an entry of its log.
func (s *Server) panics(from int64) string {
	const shown = 60
	f, err := os.Open(s.path("server.log"))
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck
	if _, err = f.Seek(from, io.SeekStart); err != nil {
		return err.Error()
	}
	var out []string
	lines := bufio.NewReader(f)
	for err == nil && len(out) < shown {
		var line string
		line, err = lines.ReadString('\n')
		began := strings.HasPrefix(line, "panic: ") && !strings.HasPrefix(line, "panic: (*logrus.Entry)")
		if len(out) > 0 || began || strings.HasPrefix(line, "fatal error: ") || strings.Contains(line, "http: panic serving") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// races returns what the race detector reported.
func (s *Server) races() string {
	var out strings.Builder
	files, _ := filepath.Glob(s.path("race.*"))
	for _, file := range files {
		data, _ := os.ReadFile(file)
		out.Write(data)
		_ = os.Remove(file)
	}
	return out.String()
}

func (s *Server) logSize() int64 {
	info, err := os.Stat(s.path("server.log"))
	if err != nil {
		return 0
	}
	return info.Size()
}

// logTail returns the log after an offset, at most its last 32 KiB.
func (s *Server) logTail(from int64) string {
	f, err := os.Open(s.path("server.log"))
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck
	from = max(from, s.logSize()-32<<10)
	data, _ := io.ReadAll(io.NewSectionReader(f, from, 64<<10))
	return string(data)
}
