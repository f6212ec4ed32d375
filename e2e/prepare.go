package e2e

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// The environment variables with the path of a server to test instead of building one: that for the host under test, that for the
// other one, and both with the stream of examples/announcements in them.
const (
	envBinary             = "TODEVICE_E2E_BINARY"
	envOtherBinary        = "TODEVICE_E2E_OTHER_BINARY"
	envAnnouncements      = "TODEVICE_E2E_ANNOUNCEMENTS_BINARY"
	envOtherAnnouncements = "TODEVICE_E2E_OTHER_ANNOUNCEMENTS_BINARY"
)

// binary is the server under test, underTest its host, workDir a directory that lives as long as the program.
var (
	binary, workDir string
	underTest       Host
	withRace        bool
)

// Prepare finds the server under test, or builds it. It is called once, before any server is made. The directory
// takes what is built, and must outlive every server.
func Prepare(dir string, race bool) (err error) {
	workDir, withRace = dir, race
	if underTest, err = HostUnderTest(); err != nil {
		return err
	}
	binary, err = underTest.server(envBinary)
	return err
}

// other returns the path of the server for the other host, which is built for the first test that asks for it.
var other = sync.OnceValues(func() (string, error) { return underTest.Other().server(envOtherBinary) })

// announcing returns the path of the server with announcements, which is built for the first test that asks for it, and announcingOther that of
// the other host.
var (
	announcing      = sync.OnceValues(func() (string, error) { return underTest.server(envAnnouncements, "-tags", "announcements") })
	announcingOther = sync.OnceValues(func() (string, error) {
		return underTest.Other().server(envOtherAnnouncements, "-tags", "announcements")
	})
)

// server builds the server with the flags of go build, unless the environment names one.
func (h Host) server(env string, flags ...string) (string, error) {
	if given := os.Getenv(env); given != "" {
		return filepath.Abs(given)
	}
	path := filepath.Join(workDir, string(h), env, "dendrite-todevice")
	if withRace {
		flags = append(flags, "-race")
	}
	return path, h.build(path, flags...)
}

// binary returns the path of the server's program.
func (o Options) binary() (string, error) {
	isOther := cmp.Or(o.Host, underTest) != underTest
	switch {
	case o.Unmodified && isOther:
		return unmodifiedOther()
	case o.Unmodified:
		return unmodified()
	case o.Announcements && isOther:
		return announcingOther()
	case isOther:
		return other()
	case o.Announcements:
		return announcing()
	default:
		return binary, nil
	}
}

// ModuleDir returns the directory of the module around this one, from wherever in this one the program runs.
var ModuleDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/matrix-org/dendrite/todevicemodule").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the module: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})
