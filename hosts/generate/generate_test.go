package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

func TestHostsAreUpToDate(t *testing.T) {
	if err := run(root, true); err != nil {
		t.Error(err)
	}
}

func TestCheckNoticesEachDifference(t *testing.T) {
	h := hosts[0]
	want, err := h.files(root)
	if err != nil {
		t.Fatal(err)
	}
	const changed = "host/host.go"
	for name, damage := range map[string]func(path string) error{
		"edited":  func(path string) error { return os.WriteFile(path, append(want[changed], "// by hand\n"...), 0o600) },
		"missing": os.Remove,
		"added":   func(path string) error { return os.WriteFile(path+".go", want[changed], 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := write(dir, want); err != nil {
				t.Fatal(err)
			}
			if err := compare(dir, want); err != nil {
				t.Fatalf("what was just written: %v", err)
			}
			if err := damage(filepath.Join(dir, changed)); err != nil {
				t.Fatal(err)
			}
			if err := compare(dir, want); !errors.Is(err, errStale) || !strings.Contains(err.Error(), changed) {
				t.Errorf("got %v, want that %s is out of date", err, changed)
			}
			if err := write(dir, want); err != nil {
				t.Fatal(err)
			}
			if err := compare(dir, want); err != nil {
				t.Errorf("written again: %v", err)
			}
		})
	}
}

func TestImportPath(t *testing.T) {
	h := target{path: "example.org/host"}
	for path, want := range map[string]string{
		first + "/syncapi":           "example.org/host/syncapi",
		module:                       module,
		module + "/storage/postgres": module + "/storage/postgres",
		module + "/hosttest":         module + "/hosttest",
		module + "/host":             "example.org/host/todevicemodule/host",
		"github.com/matrix-org/util": "github.com/matrix-org/util",
		first + "x/syncapi":          first + "x/syncapi",
		"context":                    "context",
	} {
		if got := h.importPath(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

func TestVariantOfNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gone.go.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := hosts[0].unused(dir, nil); err == nil {
		t.Error("a variant of a file that does not exist passed")
	}
}

// What names the first host in a text would look for it in the wrong module.
func TestNothingNamesTheFirstHost(t *testing.T) {
	quoted := regexp.MustCompile("[\"`]" + regexp.QuoteMeta(first) + "(/[^\"`]*)?[\"`]")
	for _, h := range hosts {
		files, err := h.files(root)
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			for _, path := range quoted.FindAllString(string(content), -1) {
				if !strings.HasPrefix(path[1:], module) {
					t.Errorf("%s of %s has %s", name, h.name, path)
				}
			}
		}
	}
}
