package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestRatioAndTarget(t *testing.T) {
	for name, c := range map[string]struct {
		ours, unmodified figure
		less             bool
		target           target
		ratio, verdict   string
	}{
		"a rate, reached":        {ours: figure{Value: 1200}, unmodified: figure{Value: 100}, target: target{Times: 12}, ratio: "12x", verdict: "yes"},
		"a rate, missed":         {ours: figure{Value: 1199}, unmodified: figure{Value: 100}, target: target{Times: 12}, ratio: "12.0x", verdict: "NO"},
		"a time, reached":        {ours: figure{Value: 2}, unmodified: figure{Value: 5}, less: true, target: target{Times: 2}, ratio: "2.50x", verdict: "yes"},
		"a time, missed":         {ours: figure{Value: 5}, unmodified: figure{Value: 2}, less: true, target: target{Times: 2}, ratio: "0.40x", verdict: "NO"},
		"both parts, one missed": {ours: figure{Value: 60}, unmodified: figure{Value: 6000}, less: true, target: target{Times: 20, AtMost: 50}, ratio: "100x", verdict: "NO"},
		"both parts, other":      {ours: figure{Value: 40}, unmodified: figure{Value: 100}, less: true, target: target{Times: 20, AtMost: 50}, ratio: "2.50x", verdict: "NO"},
		"at most":                {ours: figure{Value: 50}, unmodified: figure{Cannot: "no"}, less: true, target: target{AtMost: 50}, ratio: "-", verdict: "yes"},
		"at most, missed":        {ours: figure{Value: 50.1}, unmodified: figure{Cannot: "no"}, less: true, target: target{AtMost: 50}, ratio: "-", verdict: "NO"},
		"at least":               {ours: figure{Value: 0.9}, unmodified: figure{Cannot: "no"}, target: target{AtLeast: 0.9}, ratio: "-", verdict: "yes"},
		"at least, missed":       {ours: figure{Value: 0.89}, unmodified: figure{Cannot: "no"}, target: target{AtLeast: 0.9}, ratio: "-", verdict: "NO"},
		"not compared":           {ours: figure{Value: 9}, unmodified: figure{Cannot: "no"}, target: target{Times: 2}, ratio: "-", verdict: "-"},
		"ours can't":             {ours: figure{Value: 9, Cannot: "no"}, unmodified: figure{Value: 1}, target: target{AtLeast: 2}, ratio: "-", verdict: "NO"},
		"no target":              {ours: figure{Value: 9}, unmodified: figure{Value: 3}, ratio: "3x", verdict: "-"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &result{Less: c.less, Target: c.target, Sides: map[side]*figure{ours: &c.ours, unmodified: &c.unmodified}}
			if got := r.ratio(unmodified); got != c.ratio {
				t.Errorf("ratio: want %s, got %s", c.ratio, got)
			}
			if got := r.verdict(); got != c.verdict {
				t.Errorf("verdict: want %s, got %s", c.verdict, got)
			}
		})
	}
}

func TestTable(t *testing.T) {
	r := &result{
		Database: "sqlite", Title: "the title", Unit: "ms", Less: true, Target: target{Times: 20, AtMost: 50},
		Sides: map[side]*figure{
			unmodified: {Value: 1000, Wrong: wrong{Lost: 3, Doubled: 4}}, ours: {Value: 12.5, Note: "a note", Refused: 2}, synapse: {Value: 25},
		},
	}
	for withSynapse, want := range map[bool]string{
		false: "sqlite the title ms 1000 12.5 (a note) 80x 20x better, <= 50 ms yes 7, 0 and 2 refused",
		true:  "sqlite the title ms 1000 12.5 (a note) 80x 20x better, <= 50 ms yes 7, 0 and 2 refused 25 2x 0",
	} {
		var out bytes.Buffer
		if err := writeTable(&out, []*result{r}, withSynapse); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if got := strings.Join(strings.Fields(lines[len(lines)-1]), " "); len(lines) != 2 || got != want {
			t.Errorf("want %q, got %q", want, out.String())
		}
	}
	r.Within = true
	if got := r.ratio(unmodified); got != "-" {
		t.Errorf("sides are compared by %s, though the value compares each with itself", got)
	}
}

// Only our side has to keep promises for the run to be good.
func TestBroken(t *testing.T) {
	for of, want := range map[side]bool{ours: true, unmodified: false, synapse: false} {
		r := &result{Sides: map[side]*figure{ours: {}, unmodified: {}, synapse: {}}}
		r.Sides[of].Wrong.Reordered = 1
		if got := broken([]*result{r}) != nil; got != want {
			t.Errorf("one out of order at %s: want %v, got %v", of, want, got)
		}
	}
}
