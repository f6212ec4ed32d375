package announcements_test

import (
	"os"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
