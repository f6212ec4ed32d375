package todevicemodule_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest"
)

const hostsFile = "docs/hosts.md"

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// codeBlocks returns what stands between fences of the language.
func codeBlocks(text, language string) (blocks []string) {
	for _, found := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, found[1])
	}
	return blocks
}

func promiseNames() (names []string) {
	for _, p := range hosttest.Promises() {
		names = append(names, p.Name)
	}
	return names
}

func TestHostsDocumentHasEveryPromise(t *testing.T) {
	rows := regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\| (.+?) \\| .+ \\|$").FindAllStringSubmatch(read(t, hostsFile), -1)
	promises := hosttest.Promises()
	if len(rows) != len(promises) {
		t.Errorf("%s has %d promises, the kit %d", hostsFile, len(rows), len(promises))
	}
	for i := range min(len(rows), len(promises)) {
		if rows[i][1] != promises[i].Name || rows[i][2] != promises[i].Text {
			t.Errorf("row %d of %s: want %s: %s\ngot %s: %s", i, hostsFile, promises[i].Name, promises[i].Text, rows[i][1], rows[i][2])
		}
	}
}

// The contract names the promises of the kit, in parentheses.
func TestContractNamesEveryPromise(t *testing.T) {
	const name = `[a-z0-9]+(?:-[a-z0-9]+)+`
	named := regexp.MustCompile(`\((` + name + `(?:, ` + name + `)*)\)`)
	var found []string
	for _, file := range []string{"contract.go", "devices/directory.go", "outbox/outbox.go"} {
		text := regexp.MustCompile(`\n\t*// ?`).ReplaceAllString(read(t, file), " ")
		for _, group := range named.FindAllStringSubmatch(text, -1) {
			found = append(found, strings.Split(group[1], ", ")...)
		}
	}
	want := promiseNames()
	for _, promise := range want {
		if !slices.Contains(found, promise) {
			t.Errorf("the contract does not name the promise %s", promise)
		}
	}
	for _, promise := range found {
		if !slices.Contains(want, promise) {
			t.Errorf("the contract names %s, which is no promise of the kit", promise)
		}
	}
}

func TestHostsDocumentExampleCompiles(t *testing.T) {
	examples := codeBlocks(read(t, hostsFile), "go")
	if len(examples) != 1 {
		t.Fatalf("%s has %d examples, want 1", hostsFile, len(examples))
	}
	file := filepath.Join(t.TempDir(), "example.go")
	text := `package host

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
)

var start hosttest.Start

` + examples[0]
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "vet", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestHostsDocumentCommandsWork(t *testing.T) {
	help, err := exec.Command("make", "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	tests := read(t, "hosttest/smallhost_test.go")
	commands := codeBlocks(read(t, hostsFile), "sh")
	for _, command := range commands {
		switch command = strings.TrimSpace(command); {
		case strings.HasPrefix(command, "go list "):
			out, err := exec.Command("sh", "-c", command).Output()
			if err != nil || !strings.Contains(string(out), "/hosttest/internal/smallhost\n") {
				t.Errorf("%s: %v\n%s", command, err, out)
			}
		case strings.HasPrefix(command, "go test -run '"): // this runs them anyway
			for _, test := range regexp.MustCompile(`Test\w+`).FindAllString(command, -1) {
				if !strings.Contains(tests, "func "+test+"(") {
					t.Errorf("%s: there is no test %s", command, test)
				}
			}
		case strings.HasPrefix(command, "make "):
			if !regexp.MustCompile(`(?m)^` + strings.TrimPrefix(command, "make ") + ` `).Match(help) {
				t.Errorf("%s is not in make help", command)
			}
		default:
			t.Errorf("nobody looks whether this works: %s", command)
		}
	}
	if len(commands) < 3 {
		t.Errorf("%s has %d commands, want 3", hostsFile, len(commands))
	}
}

func TestHostsDocumentNamesWhatExists(t *testing.T) {
	text := read(t, hostsFile)
	for _, link := range regexp.MustCompile(`\]\(([^)#]+)\)`).FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(filepath.Join("docs", link[1])); err != nil {
			t.Error(err)
		}
	}
	code := ""
	for _, file := range []string{"contract.go", "devices/directory.go", "outbox/outbox.go", "config.go", "operator.go"} {
		code += read(t, file)
	}
	for _, method := range regexp.MustCompile("`(?:Module\\.)?([A-Z]\\w+)`").FindAllStringSubmatch(text, -1) {
		if !regexp.MustCompile(`\b` + method[1] + `\b`).MatchString(code) {
			t.Errorf("%s names %s, which does not exist", hostsFile, method[1])
		}
	}
	if !strings.Contains(read(t, "README.md"), "("+hostsFile+")") {
		t.Errorf("the README does not link %s", hostsFile)
	}
}
