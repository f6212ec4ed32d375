package e2e

import (
	"os"
	"path/filepath"
	"sync"
)

// envUnmodified names the environment variable with the path of an unmodified Dendrite to use instead
// of building one.
const envUnmodified = "TODEVICE_E2E_UNMODIFIED_BINARY"

// unmodified returns the path of Dendrite's own command, of the version that the module is compiled
// into. It is built for the first test that asks for it.
var unmodified = sync.OnceValues(func() (string, error) {
	if given := os.Getenv(envUnmodified); given != "" {
		return filepath.Abs(given)
	}
	path := filepath.Join(workDir, "dendrite")
	return path, goBuild("-o", path, "github.com/matrix-org/dendrite/cmd/dendrite")
})
