package e2e

import (
	"encoding/json"
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
	download := exec.Command("go", "mod", "download", "-json", h.dendrite()+"@"+version)
	out, err := download.Output()
	if err != nil {
		return "", fmt.Errorf("fetching Dendrite: %w\n%s", err, out)
	}
	var module struct{ Dir string }
	if err = json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("fetching Dendrite: %w", err)
	}
	path := filepath.Join(workDir, "unmodified", string(h))
	return path, goBuild(module.Dir, "-o", path, "./cmd/dendrite")
}
