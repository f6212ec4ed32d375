package todevicemodule

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// serverFlags returns the flags that the command defines by itself, and -config.
func serverFlags(t *testing.T) []string {
	t.Helper()
	flags := []string{"config"}
	for _, match := range regexp.MustCompile(`set\.(?:String|Bool)\("([a-z-]+)"`).FindAllStringSubmatch(readText(t, "cmd/dendrite-todevice/flags.go"), -1) {
		flags = append(flags, match[1])
	}
	if len(flags) < 5 {
		t.Fatalf("only the flags %v were found", flags)
	}
	return flags
}

func wantFlagsOf(t *testing.T, where, command string) {
	t.Helper()
	known := serverFlags(t)
	for _, flag := range regexp.MustCompile(`(?:^|[ "])-([a-z-]+)`).FindAllStringSubmatch(command, -1) {
		if !slices.Contains(known, flag[1]) {
			t.Errorf("%s: the server has no flag -%s", where, flag[1])
		}
	}
}

func TestSystemdUnit(t *testing.T) {
	const file = "deploy/dendrite-todevice.service"
	sections := map[string]map[string]string{}
	section := ""
	for line := range strings.Lines(readText(t, file)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
			sections[section] = map[string]string{}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section == "" {
			t.Fatalf("%s: %q is no setting", file, line)
		}
		if _, twice := sections[section][key]; twice && key != "SystemCallFilter" {
			t.Errorf("%s: %s is there twice", file, key)
		}
		sections[section][key] = value
	}
	service := sections["Service"]
	for key, want := range map[string]string{
		"Restart": "on-failure", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "CapabilityBoundingSet": "",
		"PrivateTmp": "yes", "MemoryDenyWriteExecute": "yes", "RestrictNamespaces": "yes", "KillSignal": "SIGTERM",
	} {
		if got, there := service[key]; !there || got != want {
			t.Errorf("%s: %s is %q (there: %v), want %q", file, key, got, there, want)
		}
	}
	if user := service["User"]; user == "" || user == "root" {
		t.Errorf("%s: runs as %q", file, user)
	}
	if !slices.Contains(strings.Fields(service["ReadWritePaths"]), service["WorkingDirectory"]) {
		t.Errorf("%s: can't write to %q", file, service["WorkingDirectory"])
	}
	wantFlagsOf(t, file, service["ExecStart"])
	if binary, _, _ := strings.Cut(service["ExecStart"], " "); path.Base(binary) != "dendrite-todevice" || !path.IsAbs(binary) {
		t.Errorf("%s: starts %q", file, binary)
	}
	// The module's last flush, and at least as long again for Dendrite.
	flush := regexp.MustCompile(`const stopTimeout = (\d+) \* time\.Second`).FindStringSubmatch(readText(t, "host/host.go"))
	if flush == nil {
		t.Fatal("host.go has no stopTimeout")
	}
	longest, _ := strconv.Atoi(flush[1])
	if patience, err := strconv.Atoi(service["TimeoutStopSec"]); err != nil || patience < 2*longest {
		t.Errorf("%s: TimeoutStopSec is %q, the last flush takes up to %d s", file, service["TimeoutStopSec"], longest)
	}
}

func TestDockerfile(t *testing.T) {
	text := readText(t, "Dockerfile")
	version := regexp.MustCompile(`(?m)^FROM golang:(\d+)\.(\d+)\.\d+-\w+ AS build$`).FindStringSubmatch(text)
	needed := regexp.MustCompile(`(?m)^go (\d+)\.(\d+)`).FindStringSubmatch(readText(t, "go.mod"))
	if version == nil || needed == nil || version[1] != needed[1] || len(version[2]) != len(needed[2]) || version[2] < needed[2] {
		t.Errorf("the Dockerfile builds with Go %v, go.mod wants %v", version, needed)
	}
	for _, image := range regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(text, -1) {
		if strings.Contains(image[1], "/") || image[1] != "scratch" && !strings.Contains(image[1], ":") {
			t.Errorf("the base image %s is of another registry, or any version", image[1])
		}
	}
	if user := regexp.MustCompile(`(?m)^USER (\d+):(\d+)$`).FindStringSubmatch(text); user == nil || user[1] == "0" || user[2] == "0" {
		t.Errorf("the image runs as %v", user)
	}
	// The command, from its flags on, without its line breaks.
	command := func(file string) string {
		_, after, _ := strings.Cut(strings.ReplaceAll(readText(t, file), "\\\n", " "), "go build ")
		line, _, _ := strings.Cut(after, "\n")
		return strings.Join(strings.Fields(line), " ")
	}
	flags, rest, _ := strings.Cut(command("Dockerfile"), " -o ")
	built := regexp.MustCompile(`^/image(\S+) (\S+)$`).FindStringSubmatch(rest)
	started := regexp.MustCompile(`(?m)^ENTRYPOINT \["([^"]+)"\]$`).FindStringSubmatch(text)
	if built == nil || started == nil || built[1] != started[1] || built[2] != "./cmd/dendrite-todevice" {
		t.Errorf("the image is built by %v, and started by %v", built, started)
	}
	// The image holds the file of a release.
	if want, _, _ := strings.Cut(command("scripts/release"), " -o "); flags != strings.NewReplacer("$version", "$VERSION", "$host", "$HOST").Replace(want) {
		t.Errorf("the image is built with %s, a release with %s", flags, want)
	}
	wantFlagsOf(t, "Dockerfile", regexp.MustCompile(`(?m)^CMD .*$`).FindString(text))
	// What is built must not be left out of the build.
	for line := range strings.Lines(readText(t, ".dockerignore")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.Contains(line, "*") {
			continue
		}
		if entries, err := os.ReadDir(line); err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			return strings.HasSuffix(e.Name(), ".go") && line != "e2e"
		}) {
			t.Errorf(".dockerignore leaves out the code in %s", line)
		}
	}
}
