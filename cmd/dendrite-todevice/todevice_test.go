package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

// run is how a subcommand is run.
type run struct {
	in   string
	asks bool
}

func (r run) toDevice(args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = toDevice(args, terminal{in: strings.NewReader(r.in), out: &stdout, err: &stderr, asks: r.asks})
	return code, stdout.String(), stderr.String()
}

// serveAdmin starts a server that answers every call with f's status and body.
func serveAdmin(t *testing.T, f func(req *http.Request) (int, any)) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		status, body := f(req)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A flag goes before the environment, and that before the configuration.
func TestWhereURLAndTokenComeFrom(t *testing.T) {
	var token string
	url := serveAdmin(t, func(req *http.Request) (int, any) {
		token = req.Header.Get("Authorization")
		return http.StatusOK, admin.Status{}
	})
	tokenFile, configToken := writeFile(t, "token", "  from_flag\n"), writeFile(t, "token", "from_config")
	config := writeFile(t, "dendrite.yaml", fmt.Sprintf("to_device:\n  enabled: true\n  admin:\n    url: %s\n    access_token_file: %s\n", url, configToken))
	for _, test := range []struct {
		environment, want string
		args              []string
	}{
		{"", "from_config", []string{"-config", config}},
		{"from_environment", "from_environment", []string{"-config", config}},
		{"from_environment", "from_environment", []string{"--url", url + "/"}},
		{"from_environment", "from_flag", []string{"--config=" + config, "-token-file", tokenFile}},
		{"", "from_flag", []string{"-url=" + url, "--token-file", tokenFile}},
	} {
		t.Setenv(tokenVariable, test.environment)
		token = ""
		if code, _, errs := (run{}).toDevice(append([]string{"status"}, test.args...)...); code != exitDone || token != "Bearer "+test.want {
			t.Errorf("%v: code %d, the token is %q, want %q\n%s", test.args, code, token, test.want, errs)
		}
	}
}

func TestMissingTokenTellsOfAMissingConfiguration(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv(tokenVariable, "")
	const hint = "there is no dendrite.yaml here: name it by -config"
	if code, _, errs := (run{}).toDevice("status"); code != exitUsage || !strings.Contains(errs, hint) {
		t.Errorf("code %d, and it says %q", code, errs)
	}
	if err := os.WriteFile("dendrite.yaml", []byte("to_device:\n  enabled: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := (run{}).toDevice("status"); code != exitUsage || !strings.Contains(errs, "access token is missing") || strings.Contains(errs, hint) {
		t.Errorf("code %d, and it says %q", code, errs)
	}
}

const unrecognised = "M_UNRECOGNIZED" //nolint:misspell // as the specification has it

func TestExitCodes(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	for _, test := range []struct {
		status  int
		errcode string
		code    int
	}{
		{200, "", exitDone}, {400, "M_INVALID_PARAM", exitUsage}, {401, "M_UNKNOWN_TOKEN", exitRefused}, {403, "M_FORBIDDEN", exitRefused},
		{404, "M_NOT_FOUND", exitNotFound}, {404, unrecognised, exitFailed}, {404, "", exitFailed}, {301, "", exitFailed},
		{429, "M_LIMIT_EXCEEDED", exitFailed}, {500, "M_UNKNOWN", exitFailed}, {503, "M_UNKNOWN", exitFailed}, {502, "", exitFailed},
	} {
		url := serveAdmin(t, func(*http.Request) (int, any) {
			if test.status == http.StatusOK {
				return test.status, admin.Retried{}
			}
			return test.status, map[string]any{"errcode": test.errcode, "error": "said \x1b[31m"}
		})
		code, _, errs := run{}.toDevice("retry", "-url", url, "x.org")
		if code != test.code || code != exitDone && !strings.HasPrefix(errs, "to-device: ") || strings.Contains(errs, "\x1b") || strings.Contains(errs, "token\"") {
			t.Errorf("%d %s: code %d, want %d: %q", test.status, test.errcode, code, test.code, errs)
		}
		if !strings.Contains(exitCodes, fmt.Sprintf("\n   %d  ", test.code)) {
			t.Errorf("the help does not have %d", test.code)
		}
	}
}

// At a wrong URL something else may answer, and with 200.
func TestAnswersOfSomethingElse(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	const queue = `"user_id":"@bob:x","device_id":"A","messages":1,"bytes":2,"oldest_position":null,"oldest_ts":null,"age_seconds":null`
	for _, test := range []struct {
		subcommand, answer string
		code               int
	}{
		{"queues", `{"queues":[]}`, exitDone},
		{"queues", `{"queues":[{` + queue + `}],"next":""}`, exitDone},
		{"queues", `{"queues":[{` + queue + `,"newer":{"a":1}}],"newer":[1]}`, exitDone},
		{"queues", `{"queues":[{"user_id":"@bob:x"}]}`, exitFailed},
		{"queues", `{"queues":[{` + strings.Replace(queue, `"messages":1`, `"messages":null`, 1) + `}]}`, exitFailed},
		{"queues", `{"queues":[{` + queue + `},null]}`, exitFailed},
		{"queues", `{"queues":[],"next":"x"}`, exitFailed}, // for ever
		{"queues", `{}`, exitFailed},
		{"queues", `{"Queues":[]}`, exitFailed},
		{"queues", `{"rooms":[]}`, exitFailed},
		{"queues", `[]`, exitFailed},
		{"queues", `null`, exitFailed},
		{"queues", `"text"`, exitFailed},
		{"queues", `<html>`, exitFailed},
		{"queues", ``, exitFailed},
		{"queues", `{"queues":[]} and more`, exitFailed},
		{"status", `{}`, exitFailed},
		{"status", `{"started_ts":1,"uptime_seconds":1,"last_position":1,"queues":{},"outbox":{},"trace":{},"counters":{}}`, exitFailed},
		{"outbox", `{"status":"ok"}`, exitFailed},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(test.answer)) }))
		code, out, errs := run{}.toDevice(test.subcommand, "-url", server.URL)
		server.Close()
		if code != test.code || code != exitDone && (out != "" || !strings.Contains(errs, "is the URL right?")) {
			t.Errorf("%s: code %d, want %d: %s%s", test.answer, code, test.code, out, errs)
		}
	}
}

func TestPathsAreEncoded(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	var path string
	url := serveAdmin(t, func(req *http.Request) (int, any) {
		path = req.Method + " " + req.URL.EscapedPath()
		return http.StatusOK, admin.Deleted{}
	})
	if code, _, errs := (run{}).toDevice("purge", "-yes", "-url", url, "@bob:x", "a/b%2F ?#"); code != exitDone {
		t.Fatal(errs)
	}
	if want := "DELETE " + admin.Prefix + "/queues/@bob:x/a%2Fb%252F%20%3F%23"; path != want {
		t.Errorf("%s, want %s", path, want)
	}
	if code, _, errs := (run{}).toDevice("purge", "-yes", "-url", url, "--", "@bob:x", "-device"); code != exitDone || !strings.HasSuffix(path, "/-device") {
		t.Errorf("%s %s", path, errs)
	}
}

// Users choose the IDs of their devices. One that looks like a flag neither redirects the token nor widens what is deleted.
func TestNamesAreNoFlags(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	var paths []string
	url := serveAdmin(t, func(req *http.Request) (int, any) {
		paths = append(paths, req.URL.Path)
		return http.StatusOK, admin.Deleted{}
	})
	elsewhere := serveAdmin(t, func(req *http.Request) (int, any) {
		t.Errorf("the token went elsewhere with %s", req.URL)
		return http.StatusOK, admin.Deleted{}
	})
	for _, deviceID := range []string{"-url=" + elsewhere, "-url", "-yes", "--yes", "-json", "-nonsense", "-", "-h", "--help", "-1", "help", " "} {
		paths = nil
		code, _, errs := run{}.toDevice("purge", "-url", url, "-yes", "@bob:x", deviceID)
		if want := admin.Prefix + "/queues/@bob:x/" + deviceID; code != exitDone || !slices.Equal(paths, []string{want}) {
			t.Errorf("%q: code %d, called were %q: %s", deviceID, code, paths, errs)
		}
	}
	for _, args := range [][]string{
		{"@bob:x", "--"}, {"@bob:x", " --"}, {"@bob:x", "--", "DEVICE"}, {"@bob:x", "DEVICE", "-yes"}, {"@bob:x", " ", "-url=" + elsewhere}, {"", "-url=" + elsewhere},
		{"@bob:x", ""}, {""}, {"", ""}, {},
	} {
		paths = nil
		code, _, errs := run{}.toDevice(append([]string{"purge", "-url", url, "-yes"}, args...)...)
		if code != exitUsage || len(paths) > 0 || !strings.Contains(errs, "to-device purge [flags] USER [DEVICE]") {
			t.Errorf("%q: code %d, called were %q: %s", args, code, paths, errs)
		}
	}
	code, _, errs := run{}.toDevice("purge", "-url", url, "-yes", "--", "@bob:x", "--")
	if code != exitDone || !slices.Equal(paths, []string{admin.Prefix + "/queues/@bob:x/--"}) {
		t.Errorf("code %d, called were %q: %s", code, paths, errs)
	}
}

func TestServersCalledHelp(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	for _, name := range []string{"help", "h"} {
		var path string
		url := serveAdmin(t, func(req *http.Request) (int, any) {
			path = req.URL.Path
			return http.StatusOK, admin.Retried{}
		})
		if code, _, errs := (run{}).toDevice("retry", "-url", url, name); code != exitDone || path != admin.Prefix+"/outbox/"+name+"/retry" {
			t.Errorf("%s: code %d, called was %s: %s", name, code, path, errs)
		}
	}
	if code, out, _ := (run{}).toDevice("retry", "-h"); code != exitDone || !strings.Contains(out, "to-device retry [flags] SERVER") {
		t.Errorf("code %d: %s", code, out)
	}
}

// A list longer than a page comes whole.
func TestPages(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	const there = 2500
	var limits []string
	url := serveAdmin(t, func(req *http.Request) (int, any) {
		query := req.URL.Query()
		limits = append(limits, query.Get("limit"))
		first, _ := strconv.Atoi(query.Get("after"))
		limit, _ := strconv.Atoi(query.Get("limit"))
		var page admin.Queues
		for n := first; n < min(first+limit, there); n++ {
			page.Queues = append(page.Queues, admin.Queue{DeviceID: strconv.Itoa(n)})
		}
		if end := first + limit; end < there {
			page.Next = strconv.Itoa(end)
		}
		return http.StatusOK, page
	})
	for limit, want := range map[int]struct {
		queues int
		limits string
		more   bool
	}{
		1000: {1000, "1000", true}, 2200: {2200, "1000 1000 200", true}, 5000: {there, "1000 1000 1000", false},
	} {
		limits = nil
		code, out, errs := run{}.toDevice("queues", "-url", url, "-json", "-limit", strconv.Itoa(limit))
		var got admin.Queues
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitDone {
			t.Fatal(err, errs)
		}
		if len(got.Queues) != want.queues || strings.Join(limits, " ") != want.limits || (got.Next != "") != want.more {
			t.Errorf("%d: %d queues in pages of %v, next %q", limit, len(got.Queues), limits, got.Next)
		}
		for n, q := range got.Queues {
			if q.DeviceID != strconv.Itoa(n) {
				t.Fatalf("queue %d is %s", n, q.DeviceID)
			}
		}
	}
}

func TestConfirmation(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	calls := 0
	url := serveAdmin(t, func(*http.Request) (int, any) {
		calls++
		return http.StatusOK, map[string]int{"deleted": 3, "discarded": 3}
	})
	for _, test := range []struct {
		run
		args  []string
		code  int
		calls int
	}{
		{run{in: "y\n"}, nil, exitUsage, 0}, // nobody is there to ask
		{run{in: "y\n", asks: true}, nil, exitDone, 1},
		{run{in: "YES\n", asks: true}, nil, exitDone, 1},
		{run{in: "n\n", asks: true}, nil, exitFailed, 0},
		{run{in: "\n", asks: true}, nil, exitFailed, 0},
		{run{in: "", asks: true}, nil, exitFailed, 0},
		{run{}, []string{"-yes"}, exitDone, 1},
	} {
		for _, command := range [][]string{{"purge", "@bob:x"}, {"discard", "x.org"}} {
			calls = 0
			code, _, errs := test.toDevice(slices.Concat(command[:1], []string{"-url", url}, test.args, command[1:])...)
			if code != test.code || calls != test.calls {
				t.Errorf("%+v %v: code %d, %d calls: %s", test.run, command, code, calls, errs)
			}
		}
	}
}

// interrupter sends an interrupt once it is asked something.
type interrupter struct{ strings.Builder }

func (i *interrupter) Write(p []byte) (int, error) {
	n, err := i.Builder.Write(p)
	if strings.HasSuffix(i.String(), "[y/N] ") {
		err = syscall.Kill(os.Getpid(), syscall.SIGINT)
	}
	return n, err
}

// Whoever is asked may also press Ctrl-C, for which the terminal gives no line.
func TestInterruptInsteadOfAConfirmation(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	url := serveAdmin(t, func(req *http.Request) (int, any) {
		t.Errorf("called was %s", req.URL)
		return http.StatusOK, map[string]int{"deleted": 3, "discarded": 3}
	})
	for _, args := range [][]string{{"purge", "-url", url, "@bob:x"}, {"discard", "-url", url, "x.org"}} {
		in, answers := io.Pipe()
		var errs interrupter
		code := toDevice(args, terminal{in: in, out: io.Discard, err: &errs, asks: true})
		if code != exitFailed || !strings.HasSuffix(errs.String(), "\nto-device: nothing was deleted\n") {
			t.Errorf("%q: code %d: %s", args, code, errs.String())
		}
		_ = answers.Close()
	}
}

// full is a disk without any room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// A script that keeps what is printed has to know when it is not kept.
func TestOutputThatCanNotBeWritten(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	url := serveAdmin(t, func(*http.Request) (int, any) {
		return http.StatusOK, admin.Queues{Queues: []admin.Queue{{UserID: "@bob:x"}}}
	})
	for _, args := range [][]string{{"queues", "-url", url}, {"queues", "-url", url, "-json"}, {"-h"}, {"queues", "-h"}} {
		var errs strings.Builder
		code := toDevice(args, terminal{in: strings.NewReader(""), out: full{}, err: &errs})
		if code != exitFailed || !strings.Contains(errs.String(), "printing: ") {
			t.Errorf("%q: code %d: %s", args, code, &errs)
		}
	}
}

func TestOverASocket(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(admin.Status{Version: "over a socket"})
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()
	if code, out, errs := (run{}).toDevice("status", "-url", "unix://"+socket); code != exitDone || !strings.Contains(out, "over a socket") {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"": "-", "@bob:x": "@bob:x", "é ü": "é ü", "a\tb": `"a\tb"`, "\x1b[2J": `"\x1b[2J"`, "\u202ex": `"\u202ex"`, "\xff": `"\xff"`,
		"-": `"-"`, "--": "--", "A  5": `"A  5"`, " A": `" A"`, "A ": `"A "`, " ": `" "`, "A\u20035": `"A\u20035"`, `"A"`: `"\"A\""`, `A"`: `A"`,
	} {
		if got := printable(text); got != want {
			t.Errorf("%q is printed as %q, want %q", text, got, want)
		}
	}
}

// What steers a terminal is in no output, and what a program reads is what the server has said.
func TestJSONHasNoControlCharacters(t *testing.T) {
	t.Setenv(tokenVariable, "token")
	const odd = "\x1b[2J\x7f\u0085\u009b2J\u200b\u202e\u2066\u2028\u00ad\U000e0001\n\"\\<é😀"
	url := serveAdmin(t, func(*http.Request) (int, any) {
		return http.StatusOK, admin.Queues{Queues: []admin.Queue{{UserID: "@bob:x", DeviceID: odd}}}
	})
	code, out, errs := run{}.toDevice("queues", "-url", url, "-json")
	for _, r := range out {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%U is in the output", r)
		}
	}
	var got admin.Queues
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitDone || len(got.Queues) != 1 || got.Queues[0].DeviceID != odd {
		t.Errorf("code %d, %v: %s%s", code, err, out, errs)
	}
	if !strings.Contains(out, "é😀") || !strings.HasSuffix(out, "}\n") {
		t.Errorf("what is printable is escaped too, or the last line does not end: %s", out)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 1 << 40: "1.0 TiB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestCheckConfigWithoutAFile(t *testing.T) {
	code, out, _ := run{}.toDevice("check-config", "-json", "-config", filepath.Join(t.TempDir(), "missing.yaml"))
	var report configReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitUsage || len(report.Faults) != 1 {
		t.Errorf("code %d, %v: %s", code, err, out)
	}
}
