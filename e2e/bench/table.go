package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// writeTable writes one line for each result: both sides, how many times better ours is, the target, and whether it is met.
// Where there is a Synapse it has two columns more.
func writeTable(to io.Writer, results []*result, withSynapse bool) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "database\trow\tunit\tunmodified\tours\tratio\ttarget\tmet\twrong (unmodified, ours)")
	if withSynapse {
		fmt.Fprintf(w, "\tsynapse\tratio to it\twrong there")
	}
	fmt.Fprintln(w)
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s, %s", r.Database, r.Title, r.Unit, r.value(unmodified), r.value(ours),
			r.ratio(unmodified), orDash(r.Target.text(r.Unit)), r.verdict(), r.wrong(unmodified), r.wrong(ours))
		if withSynapse {
			fmt.Fprintf(w, "\t%s\t%s\t%s", r.value(synapse), r.ratio(synapse), r.wrong(synapse))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func (r *result) value(of side) string {
	f := r.Sides[of]
	switch {
	case f == nil:
		return "-"
	case f.Cannot != "":
		return "cannot: " + f.Cannot
	case f.Note != "":
		return number(f.Value) + " (" + f.Note + ")"
	default:
		return number(f.Value)
	}
}

func (r *result) ratio(to side) string {
	if times, known := r.better(to); known {
		return number(times) + "x"
	}
	return "-"
}

func (r *result) verdict() string {
	met, known := r.met()
	switch {
	case !known:
		return "-"
	case met:
		return "yes"
	default:
		return "NO"
	}
}

func (r *result) wrong(of side) string {
	f := r.Sides[of]
	switch {
	case f == nil:
		return "-"
	case f.Refused > 0:
		return fmt.Sprintf("%d and %d refused", f.Wrong.total(), f.Refused)
	default:
		return fmt.Sprint(f.Wrong.total())
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
