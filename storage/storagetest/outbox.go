package storagetest

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	remote    = "remote.example.org"
	elsewhere = "elsewhere.example.org"
)

func outboxTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"whatever stands in an EDU": outboxContent,
		"a line for each name":      outboxNames,
		"no name of a server":       outboxNoNames,
		"range and limit":           outboxRange,
		"bytes":                     outboxBytes,
		"large contents":            outboxLarge,
		"sent":                      outboxSent,
		"sent: a long line":         outboxSentLong,
		"destinations":              outboxDestinations,
	}
}

func edu(destination, content string) storage.EDU {
	return storage.EDU{Destination: destination, Origin: "example.org", MessageID: "id", Content: []byte(content)}
}

// eduBatch makes a batch of EDUs that have the positions after f.last.
func (f *fixture) eduBatch(edus ...storage.EDU) storage.Batch {
	for i := range edus {
		edus[i].Position = f.last + 1 + types.Position(i)
	}
	return storage.Batch{Writer: f.writer, Previous: f.last, Last: f.last + max(1, types.Position(len(edus))), EDUs: edus}
}

// queue commits n EDUs for the destination and returns them.
func (f *fixture) queue(destination string, n int) []storage.EDU {
	f.Helper()
	var edus []storage.EDU
	for i := range n {
		e := edu(destination, fmt.Sprintf(`{"n":%d}`, i))
		e.MessageID = fmt.Sprint("id", i)
		edus = append(edus, e)
	}
	f.commit(f.eduBatch(edus...))
	return edus
}

func (f *fixture) waiting(destination string, after, through types.Position, limit, maxBytes int) []storage.EDU {
	f.Helper()
	edus, err := f.store.Waiting(f.ctx, destination, after, through, limit, maxBytes)
	f.must(err)
	return edus
}

func (f *fixture) line(destination string) []storage.EDU {
	f.Helper()
	return f.waiting(destination, 0, everLater, 1<<20, math.MaxInt)
}

func (f *fixture) wantLine(destination string, want []storage.EDU) {
	f.Helper()
	f.sameEDUs(f.line(destination), want)
}

func (f *fixture) sameEDUs(got, want []storage.EDU) {
	f.Helper()
	if len(got) != len(want) {
		f.Fatalf("got %d EDUs, want %d", len(got), len(want))
	}
	for i := range want {
		if !sameEDU(got[i], want[i]) {
			f.Fatalf("EDU %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}

func sameEDU(a, b storage.EDU) bool {
	return a.Destination == b.Destination && a.Position == b.Position && a.Origin == b.Origin &&
		a.MessageID == b.MessageID && string(a.Content) == string(b.Content)
}

func outboxContent(f *fixture) {
	var edus []storage.EDU
	for _, content := range oddContents {
		edus = append(edus, edu(remote, content))
	}
	edus = append(edus, storage.EDU{
		Destination: remote, Origin: "[::1]:8448", MessageID: "'; {\"},NULL\\ \U0001F600 $1 ?1", Content: []byte(`{}`),
	})
	batch := f.eduBatch(edus...)
	batch.EDUs = slices.Clone(edus)
	slices.Reverse(batch.EDUs) // the positions count, not the order of the batch
	f.commit(batch)
	f.wantLine(remote, edus)
}

func outboxNames(f *fixture) {
	lines := map[string][]storage.EDU{}
	var edus []storage.EDU
	names := []string{"a", "A", "a.", "a:8448", "[::1]", "a%", "_", "o'hara{\"},\\", "NULL", strings.Repeat("x", 255)}
	for round := range 2 {
		for _, name := range names {
			edus = append(edus, edu(name, fmt.Sprintf(`{"for":%q,"round":%d}`, name, round)))
		}
	}
	f.commit(f.eduBatch(edus...))
	for _, e := range edus {
		lines[e.Destination] = append(lines[e.Destination], e)
	}
	for _, name := range names {
		f.wantLine(name, lines[name])
	}
	f.wantDestinations(destinationsWaiting(names...)...)
}

// Nothing can be kept for what is not the name of a server, so that nothing is there.
func outboxNoNames(f *fixture) {
	kept := f.queue(remote, 1)
	for _, name := range []string{"", "unknown", "nul\x00", "\xff", strings.Repeat("x", 256), strings.Repeat("x", 1<<16)} {
		f.wantLine(name, nil)
		f.must(f.store.Sent(f.ctx, name, everLater))
		f.wantRefusals(name, nil)
		f.must(f.store.Accepted(f.ctx, name, kept[0].Position))
	}
	f.wantLine(remote, kept)
}

func outboxRange(f *fixture) {
	line := f.queue(remote, 5)
	f.queue(elsewhere, 3)
	for from := range line {
		for to := range line {
			for limit := range 4 {
				var want []storage.EDU
				if from < to {
					want = line[from+1 : to+1][:min(limit, to-from)]
				}
				f.sameEDUs(f.waiting(remote, line[from].Position, line[to].Position, limit, 1<<20), want)
			}
		}
	}
	f.sameEDUs(f.waiting(remote, 0, line[0].Position, 10, 1<<20), line[:1])
	f.sameEDUs(f.waiting(remote, -5, everLater, -1, 1<<20), nil)
	f.sameEDUs(f.waiting(remote, math.MinInt64, math.MaxInt64, math.MaxInt32, math.MaxInt), line)
}

func outboxBytes(f *fixture) {
	// The fourth has fewer characters than bytes.
	contents := []string{`{"a":"12345"}`, `{}`, `{"b":1}`, `{"é":"马"}`, `{}`, `{"last":"one"}`}
	var edus []storage.EDU
	for _, content := range contents {
		edus = append(edus, edu(elsewhere, strings.Repeat(" ", 1<<10)), edu(remote, content))
	}
	f.commit(f.eduBatch(edus...))
	line := f.line(remote)
	for from := range line {
		after := line[from].Position - 1
		total := 0
		for n, e := range line[from:] {
			total += len(e.Content)
			f.sameEDUs(f.waiting(remote, after, everLater, 100, total), line[from:from+n+1])
			f.sameEDUs(f.waiting(remote, after, everLater, 100, total-1), line[from:from+max(1, n)])
			f.sameEDUs(f.waiting(remote, after, everLater, n+1, total+1), line[from:from+n+1])
		}
		for _, little := range []int{0, -1, math.MinInt64} {
			f.sameEDUs(f.waiting(remote, after, everLater, 100, little), line[from:from+1])
		}
	}
}

func outboxLarge(f *fixture) {
	large := `{"c":"` + strings.Repeat("y", 6<<20) + `"}`
	edus := []storage.EDU{edu(remote, `{}`), edu(remote, large), edu(remote, large), edu(remote, `{}`)}
	f.commit(f.eduBatch(edus...))
	f.sameEDUs(f.waiting(remote, 0, everLater, 100, 1<<20), edus[:1])
	f.sameEDUs(f.waiting(remote, edus[0].Position, everLater, 100, 1<<20), edus[1:2])
	f.sameEDUs(f.waiting(remote, edus[2].Position, everLater, 100, 1<<20), edus[3:])
	f.wantLine(remote, edus)
}

func outboxSent(f *fixture) {
	line, other, after := f.queue(remote, 5), f.queue(elsewhere, 3), f.queue(remote, 1)
	all := append(slices.Clone(line), after...)
	for _, through := range []types.Position{0, -1, line[0].Position - 1} {
		f.must(f.store.Sent(f.ctx, remote, through))
		f.wantLine(remote, all)
	}
	for range 2 {
		f.must(f.store.Sent(f.ctx, remote, line[1].Position))
		f.wantLine(remote, all[2:])
	}
	f.must(f.store.Sent(f.ctx, remote, other[2].Position)) // between two of the line
	f.wantLine(remote, after)
	f.wantLine(elsewhere, other)
	f.must(f.store.Sent(f.ctx, remote, everLater))
	f.wantLine(remote, nil)
	f.wantLine(elsewhere, other)
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

// More than one statement deletes, and a last one that has nothing left to delete.
func outboxSentLong(f *fixture) {
	for _, n := range []int{2000, 3007} {
		line, other := f.queue(remote, n), f.queue(elsewhere, 1)
		f.must(f.store.Sent(f.ctx, remote, line[n-2].Position))
		f.wantLine(remote, line[n-1:])
		f.wantLine(elsewhere, other)
		f.must(f.store.Sent(f.ctx, remote, everLater))
		f.must(f.store.Sent(f.ctx, elsewhere, everLater))
	}
}

func destinationsWaiting(names ...string) []storage.Destination {
	var destinations []storage.Destination
	for _, name := range names {
		destinations = append(destinations, storage.Destination{Name: name, Waiting: true})
	}
	return destinations
}

func (f *fixture) wantDestinations(want ...storage.Destination) {
	f.Helper()
	got, err := f.store.Destinations(f.ctx)
	f.must(err)
	byName := func(a, b storage.Destination) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(got, byName)
	slices.SortFunc(want, byName)
	same := func(a, b storage.Destination) bool {
		return a.Name == b.Name && a.Waiting == b.Waiting && a.RetryAt.Equal(b.RetryAt) && a.RetryAt.IsZero() == b.RetryAt.IsZero()
	}
	if !slices.EqualFunc(got, want, same) {
		f.Fatalf("the destinations are %+v, want %+v", got, want)
	}
}

func outboxDestinations(f *fixture) {
	f.wantDestinations()
	line, other := f.queue(remote, 3), f.queue(elsewhere, 3)
	f.wantDestinations(destinationsWaiting(remote, elsewhere)...)

	f.refuse(line[1], moment(7))
	f.refuse(line[0], moment(5))
	f.refuse(other[0], never)
	f.wantDestinations(
		storage.Destination{Name: remote, Waiting: true, RetryAt: moment(5)},
		storage.Destination{Name: elsewhere, Waiting: true})

	f.must(f.store.Sent(f.ctx, remote, everLater))
	f.must(f.store.Sent(f.ctx, elsewhere, everLater))
	f.wantDestinations(storage.Destination{Name: remote, RetryAt: moment(5)})

	f.must(f.store.Accepted(f.ctx, remote, line[0].Position))
	f.wantDestinations(storage.Destination{Name: remote, RetryAt: moment(7)})
	f.refuse(line[1], never)
	f.wantDestinations()

	f.queue("a.example.org", 1)
	f.queue("z.example.org", 1)
	f.refuse(other[1], moment(-1e6)) // overdue
	f.wantDestinations(append(destinationsWaiting("a.example.org", "z.example.org"),
		storage.Destination{Name: elsewhere, RetryAt: moment(-1e6)})...)
}

// Errors returns what each method of storage.Outbox, storage.Cleaner and storage.Inspector fails with, by its name.
func Errors(ctx context.Context, store storage.Store) map[string]error {
	errs := map[string]error{}
	for _, some := range []map[string]error{outboxErrors(ctx, store), cleanerErrors(ctx, store), inspectorErrors(ctx, store)} {
		maps.Copy(errs, some)
	}
	return errs
}

func outboxErrors(ctx context.Context, store storage.Outbox) map[string]error {
	errs := map[string]error{}
	_, errs["Destinations"] = store.Destinations(ctx)
	_, errs["Waiting"] = store.Waiting(ctx, remote, 0, everLater, 1, 1)
	errs["Sent"] = store.Sent(ctx, remote, 1)
	errs["Refuse"] = store.Refuse(ctx, storage.Refusal{EDU: edu(remote, `{}`)})
	_, errs["Refused"] = store.Refused(ctx, remote, moment(0), 1)
	errs["Accepted"] = store.Accepted(ctx, remote, 1)
	return errs
}
