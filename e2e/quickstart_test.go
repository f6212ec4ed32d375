package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The quickstart shows its demonstration in a fresh directory, and in one that it made before.
func TestQuickstart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	for _, run := range []string{"first", "second"} {
		out, err := quickstart(t, "-dir", dir, "-once")
		if err != nil {
			t.Fatalf("%s run: %v\n%s", run, err, out)
		}
		for _, want := range []string{"curl ", "/sendToDevice/", "/sync?", "since="} {
			if !strings.Contains(out, want) {
				t.Errorf("%s run: %q is not in\n%s", run, want, out)
			}
		}
	}
	for _, name := range []string{"dendrite.yaml", "matrix_key.pem"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// The lines it prints do what it says: another message, sent and received by hand.
func TestQuickstartLines(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal("install curl: the quickstart prints lines for it")
	}
	dir := t.TempDir()
	cmd := exec.Command(binary, "quickstart", "-dir", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("after an interrupt: %v", err)
		}
	}()
	printed := readUntil(t, out, "Serving")
	// A line that ends in a backslash goes on in the next one.
	lines := regexp.MustCompile(`(?m)^ *curl (?:.*\\\n)*.*$`).FindAllString(printed, -1)
	if len(lines) != 2 {
		t.Fatalf("want two curl lines, got %d in\n%s", len(lines), printed)
	}
	var answers []string
	for _, line := range lines {
		line = strings.Replace(line, "curl ", curl+" -sS --fail-with-body ", 1)
		answer, err := exec.Command("sh", "-c", line).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, answer)
		}
		answers = append(answers, string(answer))
	}
	if answers[0] != "{}" || !strings.Contains(answers[1], `"Hello again"`) {
		t.Errorf("the curl lines answered %q", answers)
	}
}

// A step that fails makes the whole run fail.
func TestQuickstartFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "dendrite.yaml"), []byte("version: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"the directory is a file":   {"-dir", file, "-once"},
		"below a file":              {"-dir", filepath.Join(file, "dir"), "-once"},
		"a configuration is broken": {"-dir", broken, "-once"},
		"unknown flag":              {"-nonsense"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := quickstart(t, args...)
			if err == nil {
				t.Errorf("want a failure, got\n%s", out)
			}
			if strings.TrimSpace(out) == "" || strings.Contains(out, "panic:") {
				t.Errorf("want an error for an operator, got %q", out)
			}
		})
	}
}

func quickstart(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"quickstart"}, args...)...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}
