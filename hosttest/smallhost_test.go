package hosttest_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/internal/smallhost"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	const atOnce = "8" // most of the time they wait for what does not happen
	if err := flag.Set("test.parallel", atOnce); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(pgtest.Main(m))
}

func newKit(t *testing.T, start hosttest.Start) hosttest.Kit {
	return hosttest.Kit{
		Start:       start,
		NewDatabase: func() (string, error) { return "file:" + filepath.Join(t.TempDir(), "small.db"), nil },
		TempDir:     func() (string, error) { return t.TempDir(), nil },
	}
}

func TestSmallHostKeepsThePromises(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		kit := newKit(t, smallhost.Start)
		kit.NewDatabase = func() (string, error) { return pgtest.NewSchema(t), nil }
		hosttest.Test(t, kit)
	})
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		hosttest.Test(t, newKit(t, smallhost.Start))
	})
}

// A kit that notices nothing would pass everybody. Which further promises a fault breaks is said with it.
func TestEachFaultBreaksItsPromise(t *testing.T) {
	const patience = 3 * time.Second // in which what a fault takes away does not come
	faults := smallhost.Faults()
	promises := make(map[string]hosttest.Promise)
	for _, p := range hosttest.Promises() {
		promises[p.Name] = p
		if len(faults[p.Name]) == 0 {
			t.Errorf("no host breaks the promise %s", p.Name)
		}
	}
	for name, each := range faults {
		for _, fault := range each {
			for _, breaks := range append([]string{name}, fault.Also...) {
				p, known := promises[breaks]
				if !known {
					t.Errorf("%q is said to break %s, which is no promise", fault.What, breaks)
					continue
				}
				t.Run(breaks+"/"+fault.What, func(t *testing.T) {
					t.Parallel()
					kit := newKit(t, fault.Start)
					kit.Patience = patience
					err := p.Check(t.Context(), kit)
					if broken := (*hosttest.BrokenError)(nil); !errors.As(err, &broken) || broken.Promise.Name != breaks {
						t.Errorf("want the promise broken, got %v", err)
					}
				})
			}
		}
	}
}
