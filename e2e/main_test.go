package e2e

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// envRace, set to 1, builds the server with the race detector.
const envRace = "TODEVICE_E2E_RACE"

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
	dir, err := os.MkdirTemp("", "todevice-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck
	if err = Prepare(dir, os.Getenv(envRace) == "1"); err != nil {
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
