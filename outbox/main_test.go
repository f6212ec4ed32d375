package outbox_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

// checks is how many random histories a property test goes through, unless -rapid.checks says otherwise: with
// rapid's default of 100 those on a database take minutes.
const checks = "40"

func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", checks); err != nil {
		panic(err)
	}
	code := pgtest.Main(m)
	if code == 0 {
		if left := goroutinesLeft(); left != nil {
			fmt.Fprintf(os.Stderr, "goroutines of the outbox outlived their tests:\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of the package's goroutines that do not end soon.
func goroutinesLeft() (left []byte) {
	for range 100 {
		left = goroutines()
		if left == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return left
}

func goroutines() (found []byte) {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range bytes.SplitSeq(stacks, []byte("\n\n")) {
		if bytes.Contains(stack, []byte("/outbox.(*")) {
			found = append(found, stack...)
		}
	}
	return found
}
