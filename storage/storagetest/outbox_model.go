package storagetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// outboxModel is the contract in plain Go: a line for each destination, and what it refused.
type outboxModel struct {
	*fixture
	random  *rand.Rand
	names   []string
	lines   map[string][]storage.EDU
	refused map[string]map[types.Position]storage.Refusal
}

func modelOutbox(f *fixture) {
	m := &outboxModel{
		fixture: f, random: f.random(), names: []string{"a.x", "a.x:8448", "b.x"},
		lines: map[string][]storage.EDU{}, refused: map[string]map[types.Position]storage.Refusal{},
	}
	for _, name := range m.names {
		m.refused[name] = map[types.Position]storage.Refusal{}
	}
	for range 400 {
		name := m.names[m.random.IntN(len(m.names))]
		switch m.random.IntN(12) {
		case 0:
			m.commitRandom()
		case 1:
			m.sendRandom(name)
		case 2, 9, 10:
			m.refuseRandom(name)
		case 3:
			m.acceptRandom(name)
		case 4:
			m.wantRandomRange(name)
		case 5:
			m.wantRandomDue(name)
		case 6:
			m.readmitRandom(name)
		case 7:
			m.discardRandom(name)
		case 8:
			m.wantAllLines()
		default:
			m.wantAllDestinations()
		}
	}
	for _, name := range m.names {
		m.wantLine(name, m.lines[name])
		m.wantRefusals(name, m.due(name, 1<<50))
	}
}

func (m *outboxModel) commitRandom() {
	var edus []storage.EDU
	for range m.random.IntN(6) {
		edus = append(edus, edu(m.names[m.random.IntN(len(m.names))], fmt.Sprintf(`{"r":%d}`, m.random.IntN(1<<m.random.IntN(60)))))
	}
	m.commit(m.eduBatch(edus...))
	for _, e := range edus {
		m.lines[e.Destination] = append(m.lines[e.Destination], e)
	}
}

func (m *outboxModel) position() types.Position {
	return m.last - 20 + types.Position(m.random.IntN(25))
}

func (m *outboxModel) sendRandom(name string) {
	through := m.position()
	m.must(m.store.Sent(m.ctx, name, through))
	m.lines[name] = slices.DeleteFunc(m.lines[name], func(e storage.EDU) bool { return e.Position <= through })
}

// refuseRandom refuses an EDU of the line, or once more one that was refused.
func (m *outboxModel) refuseRandom(name string) {
	var candidates []storage.EDU
	for _, position := range slices.Sorted(maps.Keys(m.refused[name])) {
		candidates = append(candidates, m.refused[name][position].EDU)
	}
	if candidates = append(candidates, m.lines[name]...); len(candidates) == 0 {
		return
	}
	r := storage.Refusal{EDU: candidates[m.random.IntN(len(candidates))], Attempts: m.random.IntN(5), Answer: fmt.Sprint(m.random.IntN(600))}
	if m.random.IntN(3) > 0 {
		r.RetryAt = moment(int64(m.random.IntN(10)))
	}
	m.must(m.store.Refuse(m.ctx, r))
	m.refused[name][r.Position] = r
	m.lines[name] = slices.DeleteFunc(m.lines[name], func(e storage.EDU) bool { return e.Position == r.Position })
}

// refusedPosition is one that stands aside, if there is any.
func (m *outboxModel) refusedPosition(name string) types.Position {
	if refused := slices.Sorted(maps.Keys(m.refused[name])); len(refused) > 0 {
		return refused[m.random.IntN(len(refused))]
	}
	return m.position()
}

func (m *outboxModel) acceptRandom(name string) {
	position := m.refusedPosition(name)
	m.must(m.store.Accepted(m.ctx, name, position))
	delete(m.refused[name], position)
}

func (m *outboxModel) wantRandomRange(name string) {
	after, through, limit, maxBytes := m.position(), m.position(), m.random.IntN(6), m.random.IntN(80)
	var want []storage.EDU
	total := 0
	for _, e := range m.lines[name] {
		if e.Position <= after || e.Position > through {
			continue
		}
		if total += len(e.Content); len(want) == limit || len(want) > 0 && total > maxBytes {
			break
		}
		want = append(want, e)
	}
	m.sameEDUs(m.waiting(name, after, through, limit, maxBytes), want)
}

// due returns what is to be sent again by the given moment.
func (m *outboxModel) due(name string, by int64) []storage.Refusal {
	var due []storage.Refusal
	for _, position := range slices.Sorted(maps.Keys(m.refused[name])) {
		if r := m.refused[name][position]; !r.RetryAt.IsZero() && !r.RetryAt.After(moment(by)) {
			due = append(due, r)
		}
	}
	slices.SortStableFunc(due, func(a, b storage.Refusal) int { return a.RetryAt.Compare(b.RetryAt) })
	return due
}

func (m *outboxModel) wantRandomDue(name string) {
	by, limit := int64(m.random.IntN(12)), m.random.IntN(4)
	due := m.due(name, by)
	m.wantDue(name, moment(by), limit, due[:min(limit, len(due))])
}

func (m *outboxModel) wantAllDestinations() {
	var want []storage.Destination
	for _, name := range m.names {
		d := storage.Destination{Name: name, Waiting: len(m.lines[name]) > 0}
		if due := m.due(name, 1<<50); len(due) > 0 {
			d.RetryAt = due[0].RetryAt
		}
		if d.Waiting || !d.RetryAt.IsZero() {
			want = append(want, d)
		}
	}
	m.wantDestinations(want...)
}
