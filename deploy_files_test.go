package todevicemodule

import (
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
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

// A result of the cache may be that of another host or of an older server.
func TestNoTestResultIsTakenFromTheCache(t *testing.T) {
	for range 2 {
		out, err := exec.Command("./scripts/go-test", "./types").CombinedOutput()
		if err != nil || strings.Contains(string(out), "(cached)") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// What names no host says which there are, before it does anything.
func TestUnknownHostIsRefused(t *testing.T) {
	for _, args := range [][]string{{"make", "-n", "build"}, {"make", "-n", "test"}, {"make", "-n", "release"}, {"./scripts/release"}} {
		for _, name := range []string{"element", "matrix-org element-hq", "workstation"} {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = withoutMake("HOST=" + name) // which some systems set to the machine's name
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), name) || !strings.Contains(string(out), "it may be matrix-org or element-hq") {
				t.Errorf("%v with HOST=%s: %v\n%s", args, name, err, out)
			}
		}
	}
	build := exec.Command("make", "-n", "build", "HOST=")
	build.Env = withoutMake()
	out, err := build.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "cd . && go build") {
		t.Errorf("without a host: %v\n%s", err, out)
	}
}

// withoutMake returns the environment without what a make around the tests passes on, and with some more.
func withoutMake(more ...string) []string {
	environment := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "HOST", "TARGETS"}, name)
	})
	return append(environment, more...)
}

// Who publishes a release builds it for one host after the other.
func TestReleaseKeepsThatOfTheOtherHost(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"scripts/release", "Dockerfile"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(file)), 0o700), os.WriteFile(filepath.Join(dir, file), []byte(readText(t, file)), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	of := func(host string) string { return filepath.Join(dir, "dist", host, "SHA256SUMS") }
	for _, host := range []string{"matrix-org", "element-hq"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(of(host)), 0o700), os.WriteFile(of(host), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	release := exec.Command("sh", "-c", "git init -q && git -c user.name=n -c user.email=e commit -q --allow-empty -m first && scripts/release")
	release.Dir = dir
	release.Env = withoutMake("HOST=matrix-org", "TARGETS=linux-none")
	if out, err := release.CombinedOutput(); err == nil || !strings.Contains(string(out), "unknown target linux-none") {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(of("matrix-org")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last release for the host is still there: %v", err)
	}
	if _, err := os.Stat(of("element-hq")); err != nil {
		t.Errorf("that for the other host is gone: %v", err)
	}
}

// The quickstart writes a signing key into the directory in which it is run: the module's of each host, or whichever.
func TestQuickstartDataStaysHere(t *testing.T) {
	for file, line := range map[string]string{".gitignore": "quickstart-data/", ".dockerignore": "**/quickstart-data"} {
		if !slices.Contains(strings.Split(readText(t, file), "\n"), line) {
			t.Errorf("%s does not have %s", file, line)
		}
	}
}
