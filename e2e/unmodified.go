package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// envUnmodified names the environment variable with the path of an unmodified Dendrite to use instead
// of building one.
const envUnmodified = "TODEVICE_E2E_UNMODIFIED_BINARY"

// unmodified returns the path of Dendrite's own command, of the version that the module is compiled
// into. It is built for the first test that asks for it, with the versions of its own go.mod: who goes back has
// an older NATS, which must be able to read what this server's left.
var unmodified = sync.OnceValues(func() (string, error) {
	if given := os.Getenv(envUnmodified); given != "" {
		return filepath.Abs(given)
	}
	module, err := ModuleDir()
	if err != nil {
		return "", err
	}
	const dendrite = "github.com/matrix-org/dendrite"
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}}", dendrite)
	list.Dir = module
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("looking for the version of Dendrite: %w", err)
	}
	install := exec.Command("go", "install", dendrite+"/cmd/dendrite@"+strings.TrimSpace(string(version)))
	install.Env = append(os.Environ(), "GOBIN="+workDir)
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building Dendrite: %w\n%s", err, out)
	}
	return filepath.Join(workDir, "dendrite"), nil
})
