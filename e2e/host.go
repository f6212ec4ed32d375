package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// envHost names the environment variable with the host that the server under test is compiled into.
const envHost = "TODEVICE_E2E_HOST"

// Host is a homeserver that the module is compiled into.
type Host string

// The hosts there are.
const (
	MatrixOrg Host = "matrix-org" // the default
	ElementHQ Host = "element-hq"
)

// HostUnderTest returns the host of servers for which Options name none.
func HostUnderTest() (Host, error) {
	switch h := Host(os.Getenv(envHost)); h {
	case "":
		return MatrixOrg, nil
	case MatrixOrg, ElementHQ:
		return h, nil
	default:
		return "", fmt.Errorf("%s is %q: it may be %s or %s", envHost, h, MatrixOrg, ElementHQ)
	}
}

// Other returns the host that h is not.
func (h Host) Other() Host {
	if h == MatrixOrg {
		return ElementHQ
	}
	return MatrixOrg
}

// dendrite returns the path of the host's own module.
func (h Host) dendrite() string { return "github.com/" + string(h) + "/dendrite" }

// Dir returns the directory of the module with the host's command.
func (h Host) Dir() (string, error) {
	module, err := ModuleDir()
	if h == MatrixOrg {
		return module, err
	}
	return filepath.Join(module, "hosts", string(h)), err
}

// Version returns the version of Dendrite that the module is compiled into.
func (h Host) Version() (string, error) {
	dir, err := h.Dir()
	if err != nil {
		return "", err
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}}", h.dendrite())
	list.Dir = dir
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("looking for the version of Dendrite: %w", err)
	}
	return strings.TrimSpace(string(version)), nil
}

// build builds the host's command with the module in it.
func (h Host) build(output string, flags ...string) error {
	dir, err := h.Dir()
	if err != nil {
		return err
	}
	return goBuild(dir, append(append([]string{"-o", output}, flags...), "./cmd/dendrite-todevice")...)
}

// goBuild runs go build in a directory.
func goBuild(dir string, args ...string) error {
	build := exec.Command("go", append([]string{"build"}, args...)...)
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", args[len(args)-1], err, out)
	}
	return nil
}
