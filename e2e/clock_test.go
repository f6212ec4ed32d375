package e2e

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	// envClockBinary names the environment variable with the path of a server whose clock can be set, to use instead of building
	// one. That takes minutes: everything is compiled anew, the standard library included.
	envClockBinary = "TODEVICE_E2E_CLOCK_BINARY"
	// envClock names the one with the file that such a server reads its clock from.
	envClock = "TODEVICE_E2E_CLOCK"
)

// What the clock of a process is shifted by: the kernel has no other one for a single process, and Go asks the kernel past every library
// that could stand between them.
var (
	//go:embed clock/shift.go.txt
	clockShift []byte
	//go:embed clock/follow.go.txt
	clockFollow []byte
)

// The one place where Go reads the wall clock, and what it becomes.
const (
	readsClock        = "\tsec, nsec, mono := runtimeNow()\n"
	readsShiftedClock = readsClock + "\tsec += shiftedBy.Load()\n"
)

// clockServer returns the path of a server whose wall clock follows a file. It is for these tests alone: the files that make it so stand beside
// Go's own and the module's for the length of a build.
var clockServer = sync.OnceValues(func() (string, error) {
	if given := os.Getenv(envClockBinary); given != "" {
		return filepath.Abs(given)
	}
	dir := filepath.Join(workDir, "clock")
	overlay, err := clockOverlay(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "dendrite-todevice")
	args := []string{"-overlay", overlay}
	if os.Getenv(envRace) == "1" {
		args = append(args, "-race")
	}
	return path, underTest.build(path, args...)
})

// clockOverlay writes what -overlay of go build takes.
func clockOverlay(dir string) (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	module, err := underTest.Dir()
	if err != nil {
		return "", err
	}
	standard := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(standard, "time.go"))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), readsClock); n != 1 {
		return "", fmt.Errorf("%s reads the clock by %q %d times, not once: this Go is another one than the tests know, look at its time.Now", standard, strings.TrimSpace(readsClock), n)
	}
	replace := map[string]string{}
	errs := []error{os.MkdirAll(dir, 0o755)}
	for target, content := range map[string]string{
		filepath.Join(standard, "time.go"):                                      strings.Replace(string(source), readsClock, readsShiftedClock, 1),
		filepath.Join(standard, "zz_shift.go"):                                  string(clockShift),
		filepath.Join(module, "cmd", "dendrite-todevice", "zz_follow_clock.go"): string(clockFollow),
	} {
		replace[target] = filepath.Join(dir, filepath.Base(target))
		errs = append(errs, os.WriteFile(replace[target], []byte(content), 0o600))
	}
	overlay := filepath.Join(dir, "overlay.json")
	errs = append(errs, writeJSON(overlay, object{"Replace": replace}))
	return overlay, errors.Join(errs...)
}

// clock is the wall clock of a server.
type clock struct {
	file string
	s    *Server
}

// newClock gives a server that has not started yet a clock that can be set.
func newClock(t testing.TB, s *Server) *clock {
	t.Helper()
	path, err := clockServer()
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{file: s.path("clock"), s: s}
	s.binary, s.env = path, append(s.env, envClock+"="+c.file)
	return c
}

// set has the clock go so many seconds ahead of the machine's, and returns once it does, or will at the next start.
func (c *clock) set(t testing.TB, seconds int) {
	t.Helper()
	said := strconv.Itoa(seconds)
	orFail(t, os.WriteFile(c.file+".new", []byte(said), 0o600))
	orFail(t, os.Rename(c.file+".new", c.file)) // it is read whole
	eventually(t, "the server's clock is set", func() (bool, any) {
		followed, err := os.ReadFile(c.file + ".followed")
		return string(followed) == said || !c.s.running(), fmt.Sprintf("%s, %v", followed, err)
	})
}
