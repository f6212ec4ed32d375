package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A run with real servers, as short as it can be: the table has the rows, and the files are there.
func TestRun(t *testing.T) {
	out, profiles := t.TempDir(), t.TempDir()
	var stdout, stderr bytes.Buffer
	args := []string{"-short", "-length", "500ms", "-rows", "delay,idle,backlog", "-databases", "sqlite", "-out", out, "-profile", profiles}
	if err := run(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	for _, want := range []string{"at 100/s, p99", "requests/s", "first /sync"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, stdout.String())
		}
	}
	data, err := os.ReadFile(filepath.Join(out, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	var written struct {
		Machine struct{ Cores int }
		Results []struct {
			Row   string
			Ratio float64
			Sides map[string]struct {
				Value float64
				Wrong map[string]int
			}
		}
		Cost []struct{ Steps []any } `json:"cost_by_backlog"`
	}
	if err = json.Unmarshal(data, &written); err != nil {
		t.Fatal(err)
	}
	if written.Machine.Cores == 0 || len(written.Results) != 5 || len(written.Cost) != 2 {
		t.Errorf("want a machine, 5 results and the costs of 2 sides, got %+v", written)
	}
	for _, r := range written.Results {
		if r.Sides["ours"].Value <= 0 || r.Sides["unmodified"].Value <= 0 || r.Sides["ours"].Wrong["lost"] != 0 {
			t.Errorf("%+v", r)
		}
	}
	if svg, err := os.ReadFile(filepath.Join(out, "backlog-sqlite.svg")); err != nil || !bytes.Contains(svg, []byte("</svg>")) {
		t.Errorf("no plot: %v", err)
	}
	if found, _ := filepath.Glob(filepath.Join(profiles, "sqlite-delay-alone.*.pprof")); len(found) != 2 {
		t.Errorf("want a CPU and an allocation profile, got %v", found)
	}
}

func TestOptionsRefuse(t *testing.T) {
	for _, args := range [][]string{{"-rows", "nothing"}, {"-databases", "mysql"}, {"left"}, {"-unknown"}, {"-databases", ""}} {
		if _, err := parseOptions(args, new(bytes.Buffer)); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	o, err := parseOptions([]string{"-rows", "idle,throughput"}, new(bytes.Buffer))
	if err != nil || len(o.rows) != 2 || o.rows[0].name != "throughput" {
		t.Errorf("want both rows in the order of the table, got %+v, %v", o.rows, err)
	}
}

// Every content has the size that is promised, whatever it is marked with, and a request names each device once.
func TestRequest(t *testing.T) {
	to := []*device{{user: "@a:x", id: "A"}, {user: "@a:x", id: "B"}, {user: "@b:x", id: "A"}}
	var into bytes.Buffer
	for _, m := range []mark{{"l", 0, 0}, {"load", 12, 345678}} {
		var body struct {
			Messages map[string]map[string]json.RawMessage
		}
		if err := json.Unmarshal(request(&into, m, to), &body); err != nil {
			t.Fatal(err)
		}
		if len(body.Messages) != 2 || len(body.Messages["@a:x"]) != 2 || len(body.Messages["@b:x"]) != 1 {
			t.Errorf("want 2 and 1 devices, got %s", into.String())
		}
		content := body.Messages["@b:x"]["A"]
		var marked map[string]string
		if err := json.Unmarshal(content, &marked); err != nil || marked[markKey] != m.String() || len(content) != contentBytes {
			t.Errorf("want %d bytes marked %s, got %d marked %s, %v", contentBytes, m, len(content), marked[markKey], err)
		}
	}
}
