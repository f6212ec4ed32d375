package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/internal/pgtest"
)

const (
	// envBinary names the environment variable with the path of a server to test instead of
	// building one.
	envBinary = "TODEVICE_E2E_BINARY"
	// envRace, set to 1, builds the server with the race detector.
	envRace = "TODEVICE_E2E_RACE"
)

// binary is the server under test, workDir a directory that lives as long as the test binary.
var binary, workDir string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if err = manyAtOnce(); err != nil {
		return 1, err
	}
	if workDir, err = os.MkdirTemp("", "todevice-e2e-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(workDir) //nolint:errcheck
	if err = findBinary(); err != nil {
		return 1, err
	}
	if os.Getenv(pgtest.EnvURL) == "" {
		server, startErr := pgtest.Start()
		if startErr != nil {
			return 1, fmt.Errorf("no PostgreSQL for the tests: %w", startErr)
		}
		defer server.Remove() //nolint:errcheck
		if err = os.Setenv(pgtest.EnvURL, server.URL); err != nil {
			return 1, err
		}
	}
	code = m.Run()
	return code, stopShared()
}

func findBinary() (err error) {
	if given := os.Getenv(envBinary); given != "" {
		binary, err = filepath.Abs(given)
		return err
	}
	binary = filepath.Join(workDir, "dendrite-todevice")
	args := []string{"build", "-o", binary}
	if os.Getenv(envRace) == "1" {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "./cmd/dendrite-todevice")...)
	build.Dir = ".." // the server belongs to the module around this one
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the server: %w\n%s", err, out)
	}
	return nil
}

// manyAtOnce lets more tests run at once than there are processors, unless the command line says how
// many: those that may run beside others wait for servers that wait.
func manyAtOnce() error {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", "8")
}
