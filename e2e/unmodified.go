package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// The environment variables with the path of an unmodified Dendrite to use instead of building one: of the host under test, and of the
// other one.
const (
	envUnmodified      = "TODEVICE_E2E_UNMODIFIED_BINARY"
	envOtherUnmodified = "TODEVICE_E2E_OTHER_UNMODIFIED_BINARY"
)

// unmodified returns the path of Dendrite's own command, of the version that the module is compiled
// into, and unmodifiedOther that of the other host. It is built for the first test that asks for it, with the versions of its own go.mod: who
// goes back has an older NATS, which must be able to read what this server's left.
var (
	unmodified      = sync.OnceValues(func() (string, error) { return underTest.unmodified(envUnmodified) })
	unmodifiedOther = sync.OnceValues(func() (string, error) { return underTest.Other().unmodified(envOtherUnmodified) })
)

func (h Host) unmodified(env string) (string, error) {
	if given := os.Getenv(env); given != "" {
		return filepath.Abs(given)
	}
	version, err := h.Version()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(workDir, "unmodified", string(h))
	install := exec.Command("go", "install", h.dendrite()+"/cmd/dendrite@"+version)
	install.Env = append(os.Environ(), "GOBIN="+dir)
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building Dendrite: %w\n%s", err, out)
	}
	return filepath.Join(dir, "dendrite"), nil
}
