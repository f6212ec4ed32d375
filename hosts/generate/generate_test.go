package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
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
	const changed = "host/host.go"
	want := map[string][]byte{
		changed: []byte("package host\n"), "host/host_test.go": []byte("package host_test\n"), "host/testdata/queue.json": []byte("{}"),
		"cmd/server/main.go": []byte("package main\n"),
	}
	for name, damage := range map[string]func(elsewhere, path string) error{
		"edited": func(_, path string) error { return os.WriteFile(path, append(want[changed], "// by hand\n"...), 0o600) },
		"conflicted": func(_, path string) error {
			return os.WriteFile(path, append([]byte("<<<<<<< HEAD\n"), want[changed]...), 0o600)
		},
		"missing": func(_, path string) error { return os.Remove(path) },
		"added":   func(_, path string) error { return os.WriteFile(path+".go", want[changed], 0o600) },
		"linked": func(elsewhere, path string) error {
			return errors.Join(os.Rename(path, elsewhere), os.Symlink(elsewhere, path))
		},
		"directory linked": func(elsewhere, path string) error {
			return errors.Join(os.Rename(filepath.Dir(path), elsewhere), os.Symlink(elsewhere, filepath.Dir(path)))
		},
		"test data of an earlier version": func(_, path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), "testdata", filepath.Base(path)), nil, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			wantWritten(t, dir, want)
			if err := damage(filepath.Join(t.TempDir(), "elsewhere"), filepath.Join(dir, changed)); err != nil {
				t.Fatal(err)
			}
			if err := compare(dir, want); !errors.Is(err, errStale) {
				t.Errorf("got %v, want that it is out of date", err)
			}
			wantWritten(t, dir, want)
		})
	}
}

func wantWritten(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	for range 2 {
		if err := write(dir, want); err != nil {
			t.Fatal(err)
		}
		if err := compare(dir, want); err != nil {
			t.Fatalf("what was just written: %v", err)
		}
	}
}

func TestFileByHandBesideTheGeneratedOnes(t *testing.T) {
	dir, want := t.TempDir(), map[string][]byte{"host/host.go": []byte("package host\n")}
	wantWritten(t, dir, want)
	const name = "extra/extra.go"
	put(t, dir, map[string]string{name: "package extra\n"})
	for _, err := range []error{compare(dir, want), write(dir, want)} {
		if !errors.Is(err, errByHand) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want that %s is by hand", err, name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		t.Error("it was deleted:", err)
	}
}

func TestLinkIsNotFollowed(t *testing.T) {
	dir, original := t.TempDir(), filepath.Join(t.TempDir(), "host.go")
	put(t, filepath.Dir(original), map[string]string{"host.go": "the first host's"})
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "host"), 0o700), os.Symlink(original, filepath.Join(dir, "host", "host.go"))); err != nil {
		t.Fatal(err)
	}
	wantWritten(t, dir, map[string][]byte{"host/host.go": []byte("generated")})
	if content, err := os.ReadFile(original); err != nil || string(content) != "the first host's" {
		t.Errorf("%v: the file behind the link is %q now", err, content)
	}
}

// What people and tools leave behind in the directories is not the other hosts'.
func TestWhatIsCopied(t *testing.T) {
	dir := t.TempDir()
	want := map[string]string{
		"host/host.go":                       "package host\n",
		"host/windows.go":                    "//go:build windows\n\npackage host\n\nimport _ \"" + first + "/windows\"\n",
		"host/crlf.go":                       "package host\r\n\r\nconst a = `b\r\nc`\r\n",
		"host/host_test.go":                  "package host_test\n",
		"host/testdata/fuzz/FuzzToken/empty": "go test fuzz v1\r\nstring(\"\")\n",
		"host/testdata/broken.go":            "no Go at all",
		"host/page.html":                     "<p>\r\n",
		"host/pages/_first":                  "1",
		"host/embed.go":                      "//go:build windows\n\npackage host\n\nimport \"embed\"\n\n//go:embed page.html all:pages\nvar pages embed.FS\n",
		"cmd/server/main.go":                 "package main\n",
	}
	put(t, dir, want)
	put(t, dir, map[string]string{
		"host/host.test":                         "a binary",
		"host/cpu.out":                           "a profile",
		"host/host.go~":                          "package host",
		"host/.host.go":                          "no Go at all",
		"host/_host.go":                          "no Go at all",
		"host/testdata/rapid/TestX/TestX-1.fail": "a failure",
		"cmd/server/server":                      "a binary",
		"cmd/server/quickstart-data/key.pem":     "a secret",
		"elsewhere/elsewhere.go":                 "package elsewhere\n",
	})
	if err := os.Symlink("of an editor", filepath.Join(dir, "host", ".#host.go")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, variantsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := hosts[0].files(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range want {
		if _, there := got[name]; !there {
			t.Errorf("%s is left out", name)
		}
		if !isCode(name) && string(got[name]) != content {
			t.Errorf("%s has become %q", name, got[name])
		}
	}
	for name := range got {
		if _, wanted := want[name]; !wanted {
			t.Errorf("%s is copied", name)
		}
	}
	const header = "// Code generated by hosts/generate from host/windows.go. DO NOT EDIT.\n\n"
	if got := string(got["host/windows.go"]); got != header+strings.Replace(want["host/windows.go"], first, hosts[0].path, 1) {
		t.Errorf("a file with a build tag has become\n%s", got)
	}
	wantWritten(t, t.TempDir(), got)
}

func TestVariants(t *testing.T) {
	const original = "package host\n\nconst host = 1\n"
	made := fmt.Sprintf(replaces, sha256.Sum256([]byte(original)))
	for name, c := range map[string]struct{ path, content, wantErr string }{
		"of the file":         {path: "element-hq/host/host.go.txt", content: made + "package host\n\nconst host = 2\n"},
		"of an older version": {"element-hq/host/host.go.txt", fmt.Sprintf(replaces, sha256.Sum256([]byte("before"))) + original, made},
		"of any version":      {"element-hq/host/host.go.txt", original, made},
		"of no file":          {"element-hq/host/gone.go.txt", made + original, "is a variant of no file"},
		"without its suffix":  {"element-hq/host/host.go", made + original, "is not used"},
		"of no host":          {"element/host/host.go.txt", made + original, "is not used"},
		"of all hosts":        {"host.go.txt", made + original, "is not used"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, map[string]string{"host/host.go": original, filepath.Join(variantsDir, c.path): c.content})
			got, err := hosts[0].files(dir)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) || !strings.Contains(err.Error(), c.path) {
					t.Errorf("got %v, want an error about %s with %q", err, c.path, c.wantErr)
				}
				return
			}
			const want = "// Code generated by hosts/generate from " + variantsDir + "/element-hq/host/host.go.txt. DO NOT EDIT.\n\npackage host\n\nconst host = 2\n"
			if err != nil || string(got["host/host.go"]) != want {
				t.Errorf("%v\n%s", err, got["host/host.go"])
			}
		})
	}
}

// put writes files below dir.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
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
