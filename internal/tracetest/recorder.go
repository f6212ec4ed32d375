// Package tracetest keeps what a test's trace is told.
package tracetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
)

// Reporter is a *testing.T or a *rapid.T.
type Reporter interface {
	Helper()
	Errorf(format string, args ...any)
}

// Recorder keeps every record. It is safe for concurrent use; its zero value is ready.
type Recorder struct {
	mu      sync.Mutex
	records []trace.Record
}

// Record is trace.Recorder's.
func (r *Recorder) Record(records ...trace.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, records...)
}

// Records returns what was recorded.
func (r *Recorder) Records() []trace.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.records)
}

// Want fails the test unless the given records, and no others, were recorded since the last call, in their order but that of
// records of one step next to each other: recipients have none.
func (r *Recorder) Want(t Reporter, want ...trace.Record) {
	t.Helper()
	r.mu.Lock()
	got := r.records
	r.records = nil
	r.mu.Unlock()
	if g, w := lines(got), lines(want); !slices.Equal(g, w) {
		t.Errorf("recorded are\n  %s\nwant\n  %s", strings.Join(g, "\n  "), strings.Join(w, "\n  "))
	}
}

func lines(records []trace.Record) (all []string) {
	begin := 0
	for i := range records {
		all = append(all, fmt.Sprintf("%+v", records[i]))
		if i+1 == len(records) || records[i+1].Step != records[i].Step {
			slices.Sort(all[begin:])
			begin = len(all)
		}
	}
	return all
}
