package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// envBinary names the environment variable with the path of a server to test instead of
// building one.
const envBinary = "TODEVICE_E2E_BINARY"

// binary is the server under test, workDir a directory that lives as long as the program.
var binary, workDir string

// Prepare finds the server under test, or builds it. It is called once, before any server is made. The directory
// takes what is built, and must outlive every server.
func Prepare(dir string, race bool) (err error) {
	workDir = dir
	if given := os.Getenv(envBinary); given != "" {
		binary, err = filepath.Abs(given)
		return err
	}
	binary = filepath.Join(workDir, "dendrite-todevice")
	args := []string{"-o", binary}
	if race {
		args = append(args, "-race")
	}
	return goBuild(append(args, "./cmd/dendrite-todevice")...)
}

// goBuild builds a command of the module around this one, or of a module that it requires.
func goBuild(args ...string) error {
	module, err := ModuleDir()
	if err != nil {
		return err
	}
	build := exec.Command("go", append([]string{"build"}, args...)...)
	build.Dir = module
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", args[len(args)-1], err, out)
	}
	return nil
}

// ModuleDir returns the directory of the module around this one, from wherever in this one the program runs.
var ModuleDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/matrix-org/dendrite/todevicemodule").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the module: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})
