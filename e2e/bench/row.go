package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
)

// The roles of servers.
const (
	alone  = "alone"
	filled = "filled" // with a backlog
	empty  = "empty"  // beside it
	here   = "here"
	there  = "there"
)

// row measures one or more lines of the table, on one database.
type row struct {
	name    string
	measure func(ctx context.Context, s *stage) ([]*result, error)
	// roles are of the servers that no other row uses.
	roles []string
}

var rows = []row{
	{name: "throughput", measure: measureThroughput},
	{name: "delay", measure: measureDelay},
	{name: "delay-1000", measure: measureDelayAtRate},
	{name: "sweep", measure: measureSweep},
	{name: "idle", measure: measureIdle},
	{name: "fan-out", measure: measureFanOut},
	{name: "backlog", measure: measureBacklog, roles: []string{filled}},
	{name: "federation", measure: measureFederation, roles: []string{here, there}},
	{name: "million", measure: measureMillion, roles: []string{filled, empty}},
}

func rowNames() string {
	var names []string
	for _, r := range rows {
		names = append(names, r.name)
	}
	return strings.Join(names, ",")
}

// selectRows returns the rows that a comma-separated list names, in the order in which they are measured.
func selectRows(list string) ([]row, error) {
	if list == "" {
		return rows, nil
	}
	wanted := strings.Split(list, ",")
	for _, name := range wanted {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.name == name }) {
			return nil, fmt.Errorf("no row %q; there are %s", name, rowNames())
		}
	}
	return slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !slices.Contains(wanted, r.name) }), nil
}

// onDatabase returns the target for the database.
func onDatabase(db e2e.Backend, postgres, sqlite target) target {
	if db == e2e.Postgres {
		return postgres
	}
	return sqlite
}

// inTurn measures every side in every round, so that what disturbs the machine disturbs all. The function is given the
// server of the side. A side other than ours that fails is left out of the rounds that remain.
func (s *stage) inTurn(ctx context.Context, role, name string, rounds int, measure func(round int, of *server) error) error {
	failed := map[side]bool{}
	for round := range rounds {
		for _, of := range s.sides() {
			if failed[of] {
				continue
			}
			s.b.progress.at(string(s.db), name, string(of), fmt.Sprintf("%d of %d", round+1, rounds))
			got, err := s.server(ctx, of, role)
			if err == nil {
				err = measure(round, got)
			}
			if err == nil {
				continue
			}
			err = fmt.Errorf("%s, %s on %s: %w", name, of, s.db, err)
			if of == ours || ctx.Err() != nil {
				return err
			}
			failed[of] = true
			s.b.fail(err)
		}
	}
	return nil
}

// figures collects the rounds of each side.
type figures map[side]*figure

func (f figures) of(s side) *figure {
	if f[s] == nil {
		f[s] = &figure{}
	}
	return f[s]
}

// add takes one more round.
func (f *figure) add(v float64) {
	f.Rounds = append(f.Rounds, v)
	f.Value = median(f.Rounds)
}

// addDetail takes what else was measured in a round.
func (f *figure) addDetail(v any) {
	all, _ := f.Details.([]any)
	all = append(all, v)
	f.Details = all
}

// addOutcome takes what a load found, beside its value.
func (f *figure) addOutcome(o *outcome) {
	f.Wrong, f.Refused = f.Wrong.plus(o.Wrong), f.Refused+o.Refused
	f.addDetail(o)
}
