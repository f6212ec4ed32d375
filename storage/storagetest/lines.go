package storagetest

import (
	"cmp"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func lineTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"what is kept":        linesKept,
		"large contents":      linesLarge,
		"aside":               asidePaged,
		"readmit":             readmitAside,
		"readmit one":         readmitOne,
		"discard":             discardAside,
		"discard one":         discardOne,
		"many":                asideMany,
		"no name of a server": linesNoNames,
	}
}

func lineOf(destination string, waiting []storage.EDU, aside []storage.Refusal) storage.Line {
	line := storage.Line{Destination: destination, Waiting: len(waiting)}
	if len(waiting) > 0 {
		line.Oldest = waiting[0].Position
	}
	for _, e := range waiting {
		line.Bytes += int64(len(e.Content))
	}
	for _, r := range aside {
		if r.RetryAt.IsZero() {
			line.SetAside++
		} else {
			line.Refused++
		}
	}
	return line
}

// wantLines checks every line, every page of the given length, and their sum. A line without anything is not wanted.
func (f *fixture) wantLines(limit int, want []storage.Line) {
	f.Helper()
	var sum storage.Line
	var kept []storage.Line
	for _, line := range want {
		got, err := f.store.Line(f.ctx, line.Destination)
		f.must(err)
		if got != line {
			f.Fatalf("the line is %+v, want %+v", got, line)
		}
		if line == (storage.Line{Destination: line.Destination}) {
			continue
		}
		kept = append(kept, line)
		sum.Waiting, sum.Bytes = sum.Waiting+line.Waiting, sum.Bytes+line.Bytes
		sum.Refused, sum.SetAside = sum.Refused+line.Refused, sum.SetAside+line.SetAside
		if line.Oldest > 0 && (sum.Oldest == 0 || line.Oldest < sum.Oldest) {
			sum.Oldest = line.Oldest
		}
	}
	var got []storage.Line
	for after := ""; ; {
		page, err := f.store.Lines(f.ctx, after, limit)
		f.must(err)
		if got = append(got, page...); len(page) < limit {
			break
		}
		after = page[limit-1].Destination
	}
	byName := func(a, b storage.Line) int { return cmp.Compare(a.Destination, b.Destination) }
	slices.SortFunc(got, byName)
	slices.SortFunc(kept, byName)
	if !slices.Equal(got, kept) {
		f.Fatalf("with the limit %d the lines are %+v, want %+v", limit, got, kept)
	}
	totals, err := f.store.Totals(f.ctx)
	f.must(err)
	if totals.Outbox != sum {
		f.Fatalf("the lines together are %+v, want %+v", totals.Outbox, sum)
	}
}

// wantAside checks every page of the given length.
func (f *fixture) wantAside(destination string, limit int, want []storage.Refusal) {
	f.Helper()
	var got []storage.Refusal
	for after := types.Position(0); ; {
		page, err := f.store.Aside(f.ctx, destination, after, limit)
		f.must(err)
		if got = append(got, page...); len(page) < limit {
			break
		}
		after = page[limit-1].Position
	}
	f.sameAside(got, want)
}

// sameAside wants the same without the contents.
func (f *fixture) sameAside(got, want []storage.Refusal) {
	f.Helper()
	if len(got) != len(want) {
		f.Fatalf("%d EDUs stand aside, want %d", len(got), len(want))
	}
	for i, w := range want {
		w.Content = nil
		if g := got[i]; !sameEDU(g.EDU, w.EDU) || g.Attempts != w.Attempts || !g.RetryAt.Equal(w.RetryAt) ||
			g.RetryAt.IsZero() != w.RetryAt.IsZero() || g.Answer != w.Answer {
			f.Fatalf("EDU %d aside is %+v, want %+v", i, g, w)
		}
	}
}

func linesKept(f *fixture) {
	f.wantLines(1, nil)
	line, other, third := f.queue(remote, 5), f.queue(elsewhere, 2), f.queue("third.example.org", 3)
	aside := []storage.Refusal{f.refuse(line[0], moment(5)), f.refuse(line[3], never), f.refuse(line[4], moment(-1))}
	last := f.refuse(f.queue("zz.example.org", 1)[0], never) // behind all that have a line
	gone := []storage.Refusal{f.refuse(other[0], never), f.refuse(other[1], never)}
	want := []storage.Line{
		lineOf("zz.example.org", nil, []storage.Refusal{last}), lineOf(remote, line[1:3], aside), lineOf(elsewhere, nil, gone), lineOf("third.example.org", third, nil), lineOf("unknown", nil, nil),
	}
	for limit := 1; limit <= 5; limit++ {
		f.wantLines(limit, want)
	}
	for _, none := range []int{0, -1} {
		lines, err := f.store.Lines(f.ctx, "", none)
		f.must(err)
		some, err := f.store.Aside(f.ctx, remote, 0, none)
		f.must(err)
		if len(lines)+len(some) > 0 {
			f.Errorf("with the limit %d there are %+v and %+v", none, lines, some)
		}
	}
}

func linesLarge(f *fixture) {
	large := `{"c":"` + strings.Repeat("é", 3<<20) + `"}`
	edus := []storage.EDU{edu(remote, large), edu(remote, `{}`)}
	f.commit(f.eduBatch(edus...))
	f.wantLines(10, []storage.Line{lineOf(remote, edus, nil)})
	refused := f.refuse(edus[0], never)
	f.wantAside(remote, 10, []storage.Refusal{refused})
	f.wantLines(10, []storage.Line{lineOf(remote, edus[1:], []storage.Refusal{refused})})
}

func asidePaged(f *fixture) {
	line, other := f.queue(remote, 5), f.queue(elsewhere, 1)
	var aside []storage.Refusal
	for i, e := range line[:4] {
		r := storage.Refusal{EDU: e, Attempts: i + 1, RetryAt: moment(int64(9 - i)), Answer: "4'00 {\"},NULL\\"}
		if i == 2 {
			r.RetryAt = never
		}
		f.must(f.store.Refuse(f.ctx, r))
		aside = append(aside, r)
	}
	kept := f.refuse(other[0], never)
	for limit := 1; limit <= 5; limit++ {
		f.wantAside(remote, limit, aside)
	}
	f.wantAside(elsewhere, 10, []storage.Refusal{kept})
	f.wantAside("unknown", 10, nil)
}

func (f *fixture) wantReadmitted(destination string, position types.Position, at int64, want int) {
	f.Helper()
	readmitted, err := f.store.Readmit(f.ctx, destination, position, moment(at))
	f.must(err)
	if readmitted != want {
		f.Fatalf("%d EDUs were readmitted, want %d", readmitted, want)
	}
}

func readmitAside(f *fixture) {
	line, other, more := f.queue(remote, 2), f.queue(elsewhere, 1), f.queue(remote, 2)
	line = append(line, more...)
	f.wantReadmitted(remote, 0, 3, 0)
	aside := []storage.Refusal{f.refuse(line[0], never), f.refuse(line[1], moment(50)), f.refuse(line[2], moment(1))}
	kept := f.refuse(other[0], never) // between them
	f.wantReadmitted(remote, 0, 3, 3)
	for i := range aside {
		aside[i].RetryAt = moment(3)
	}
	f.wantAside(remote, 10, aside)
	f.wantRefusals(remote, aside) // with their contents
	f.wantDestinations(storage.Destination{Name: remote, Waiting: true, RetryAt: moment(3)})
	f.wantAside(elsewhere, 10, []storage.Refusal{kept})
	if _, err := f.store.Readmit(f.ctx, remote, 0, never); err == nil {
		f.Error("readmitted for never")
	}
	f.wantAside(remote, 10, aside)
	f.wantLine(remote, line[3:])
}

func readmitOne(f *fixture) {
	line, other := f.queue(remote, 4), f.queue(elsewhere, 1)
	aside := []storage.Refusal{f.refuse(line[0], never), f.refuse(line[2], never), f.refuse(line[3], moment(9))}
	for _, position := range []types.Position{line[0].Position - 1, line[1].Position, other[0].Position, everLater, -1} {
		f.wantReadmitted(remote, position, 3, 0)
	}
	f.wantReadmitted(remote, line[2].Position, 4, 1)
	aside[1].RetryAt = moment(4)
	f.wantAside(remote, 10, aside)
	f.wantReadmitted(remote, line[3].Position, 2, 1)
	aside[2].RetryAt = moment(2)
	f.wantAside(remote, 10, aside)
	f.wantReadmitted(elsewhere, line[0].Position, 2, 0)
	f.wantAside(remote, 10, aside)
}

func (f *fixture) wantDiscarded(destination string, position types.Position, want []storage.Refusal) {
	f.Helper()
	discarded, err := f.store.Discard(f.ctx, destination, position)
	f.must(err)
	f.sameAside(discarded, want)
}

func discardAside(f *fixture) {
	line, other, more := f.queue(remote, 2), f.queue(elsewhere, 1), f.queue(remote, 2)
	line = append(line, more...)
	f.wantDiscarded(remote, 0, nil)
	aside := []storage.Refusal{f.refuse(line[0], never), f.refuse(line[1], moment(50)), f.refuse(line[2], moment(1))}
	kept := f.refuse(other[0], never) // between them
	f.wantDiscarded(remote, 0, aside)
	f.wantDiscarded(remote, 0, nil)
	f.wantAside(remote, 10, nil)
	f.wantAside(elsewhere, 10, []storage.Refusal{kept})
	f.wantLine(remote, line[3:])
}

func discardOne(f *fixture) {
	line, other := f.queue(remote, 4), f.queue(elsewhere, 1)
	aside := []storage.Refusal{f.refuse(line[0], never), f.refuse(line[2], never), f.refuse(line[3], moment(9))}
	for _, position := range []types.Position{line[0].Position - 1, line[1].Position, other[0].Position, everLater, -1} {
		f.wantDiscarded(remote, position, nil)
	}
	f.wantDiscarded(elsewhere, line[0].Position, nil)
	f.wantAside(remote, 10, aside)
	f.wantDiscarded(remote, line[2].Position, aside[1:2])
	f.wantDiscarded(remote, line[2].Position, nil)
	f.wantAside(remote, 10, []storage.Refusal{aside[0], aside[2]})
	f.wantLine(remote, line[1:2])
}

// More than one transaction changes them, and a last one that may have nothing left.
func asideMany(f *fixture) {
	for _, n := range []int{1000, 2003} {
		var aside []storage.Refusal
		for _, e := range f.queue(remote, n) {
			aside = append(aside, f.refuse(e, never))
		}
		f.wantReadmitted(remote, 0, 7, n)
		for i := range aside {
			aside[i].RetryAt = moment(7)
		}
		f.wantRefusals(remote, aside)
		f.wantDiscarded(remote, 0, aside)
		f.wantAside(remote, 10, nil)
	}
}

func linesNoNames(f *fixture) {
	f.refuse(f.queue(remote, 1)[0], never)
	for _, name := range []string{"", "unknown", "nul\x00", "\xff", strings.Repeat("x", 256)} {
		line, err := f.store.Line(f.ctx, name)
		f.must(err)
		if line != (storage.Line{Destination: name}) {
			f.Errorf("the line of %.20q is %+v", name, line)
		}
		f.wantAside(name, 10, nil)
		f.wantReadmitted(name, 0, 1, 0)
		f.wantDiscarded(name, 0, nil)
	}
}
