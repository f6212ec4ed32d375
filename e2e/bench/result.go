package main

import (
	"fmt"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
)

// figure is what was measured of one side.
type figure struct {
	// Value is the median of the rounds.
	Value  float64   `json:"value"`
	Rounds []float64 `json:"rounds,omitempty"`
	// Cannot says why there is no value.
	Cannot string `json:"cannot,omitempty"`
	// Note says what differs from the title.
	Note    string `json:"note,omitempty"`
	Wrong   wrong  `json:"wrong"`
	Refused int    `json:"refused,omitempty"`
	// Details are whatever else was measured, for each round or as a whole.
	Details any `json:"details,omitempty"`
}

// result is one line of the table.
type result struct {
	Row      string      `json:"row"`
	Database e2e.Backend `json:"database"`
	Title    string      `json:"title"`
	Unit     string      `json:"unit"`
	Less     bool        `json:"less_is_better,omitempty"`
	// Within says that the value compares a server with itself: sides are not compared by it.
	Within bool             `json:"within_a_side,omitempty"`
	Sides  map[side]*figure `json:"sides"`
	Target target           `json:"target,omitzero"`
}

// target is what our side has to reach; a zero part asks for nothing.
type target struct {
	// Times is how many times better than the unmodified side.
	Times float64 `json:"times_better,omitempty"`
	// AtMost and AtLeast bound the value itself.
	AtMost  float64 `json:"at_most,omitempty"`
	AtLeast float64 `json:"at_least,omitempty"`
}

// better returns how many times better our side is than another one: 2 is half the time, or double the rate. It is not
// known if either has no value.
func (r *result) better(than side) (times float64, known bool) {
	a, b := r.Sides[ours], r.Sides[than]
	if r.Within || a == nil || b == nil || a.Cannot != "" || b.Cannot != "" {
		return 0, false
	}
	over, under := a.Value, b.Value
	if r.Less {
		over, under = under, over
	}
	return over / under, under > 0
}

// met tells whether our side reached the target. That is not known without a target, or without what it compares with.
func (r *result) met() (met, known bool) {
	f := r.Sides[ours]
	if f == nil || r.Target == (target{}) {
		return false, false
	}
	if f.Cannot != "" {
		return false, true
	}
	met = true
	if r.Target.Times > 0 {
		times, measured := r.better(unmodified)
		if !measured {
			return false, false
		}
		met = times >= r.Target.Times
	}
	if r.Target.AtMost > 0 {
		met = met && f.Value <= r.Target.AtMost
	}
	if r.Target.AtLeast > 0 {
		met = met && f.Value >= r.Target.AtLeast
	}
	return met, true
}

func (t target) text(unit string) string {
	var text string
	add := func(format string, v float64, unit string) {
		if v == 0 {
			return
		}
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf(format, number(v)) + unit
	}
	if unit != "" && unit != "x" {
		unit = " " + unit
	}
	add("%sx better", t.Times, "")
	add("<= %s", t.AtMost, unit)
	add(">= %s", t.AtLeast, unit)
	return text
}

// number writes a value with three digits or more.
func number(v float64) string {
	switch {
	case v >= 100 || v == 0 || v == float64(int(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
