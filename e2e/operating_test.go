package e2e

import (
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every command of docs/operating.md is one that the server knows, with its flags; and every command that it knows is there.
func TestOperatingCommandsExist(t *testing.T) {
	doc, err := os.ReadFile("../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	help := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(binary, append([]string{"to-device"}, append(args, "-h")...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("to-device %s -h: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	known := make(map[string]string)
	_, list, _ := strings.Cut(help(), "COMMANDS:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for _, line := range regexp.MustCompile(`(?m)^   ([a-z-]+)`).FindAllStringSubmatch(list, -1) {
		if name := line[1]; name != "help" {
			known[name] = help(name)
		}
	}
	if len(known) < 9 {
		t.Fatalf("the subcommands are %q", list)
	}
	named := make(map[string]bool)
	for _, use := range regexp.MustCompile("to-device ([a-z-]+)([^`\n]*)").FindAllStringSubmatch(string(doc), -1) {
		name, rest := use[1], use[2]
		if strings.HasPrefix(name, "-") || name == "messages" || name == "module" || name == "message" {
			continue
		}
		usage, ok := known[name]
		if !ok {
			t.Errorf("there is no command to-device %s", name)
			continue
		}
		named[name] = true
		for _, flag := range regexp.MustCompile(` --?([a-z][a-z-]*)`).FindAllStringSubmatch(rest, -1) {
			if !strings.Contains(usage, "--"+flag[1]) {
				t.Errorf("to-device %s has no flag %s", name, flag[1])
			}
		}
	}
	for name := range known {
		if !named[name] {
			t.Errorf("docs/operating.md does not say what to-device %s is for", name)
		}
	}
	for _, flag := range []string{"config", "json"} {
		for name, usage := range known {
			if !strings.Contains(usage, "--"+flag) {
				t.Errorf("to-device %s has no flag %s", name, flag)
			}
		}
	}
	for _, flag := range regexp.MustCompile("`--?([a-z-]+)`").FindAllStringSubmatch(string(doc), -1) {
		if flag[1] != "h" && !slices.ContainsFunc(slices.Collect(maps.Values(known)), func(usage string) bool { return strings.Contains(usage, "--"+flag[1]) }) {
			t.Errorf("no subcommand has the flag %s", flag[1])
		}
	}
}
