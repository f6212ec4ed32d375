package storagetest

import (
	"maps"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// chosen returns what stands aside at the position, or all of it for zero.
func (m *outboxModel) chosen(name string, position types.Position) []storage.Refusal {
	var chosen []storage.Refusal
	for _, at := range slices.Sorted(maps.Keys(m.refused[name])) {
		if position == 0 || position == at {
			chosen = append(chosen, m.refused[name][at])
		}
	}
	return chosen
}

func (m *outboxModel) oneOrAll(name string) types.Position {
	if m.random.IntN(3) == 0 {
		return 0
	}
	return m.refusedPosition(name)
}

func (m *outboxModel) readmitRandom(name string) {
	position, at := m.oneOrAll(name), moment(int64(m.random.IntN(10)))
	readmitted, err := m.store.Readmit(m.ctx, name, position, at)
	m.must(err)
	chosen := m.chosen(name, position)
	if readmitted != len(chosen) {
		m.Fatalf("%d EDUs were readmitted, want %d", readmitted, len(chosen))
	}
	for _, r := range chosen {
		r.RetryAt = at
		m.refused[name][r.Position] = r
	}
}

func (m *outboxModel) discardRandom(name string) {
	position := m.oneOrAll(name)
	chosen := m.chosen(name, position)
	discarded, err := m.store.Discard(m.ctx, name, position)
	m.must(err)
	m.sameAside(discarded, chosen)
	for _, r := range chosen {
		delete(m.refused[name], r.Position)
	}
}

func (m *outboxModel) wantAllLines() {
	var want []storage.Line
	for _, name := range m.names {
		m.wantAside(name, 1+m.random.IntN(3), m.chosen(name, 0))
		want = append(want, lineOf(name, m.lines[name], m.chosen(name, 0)))
	}
	m.wantLines(1+m.random.IntN(4), want)
}
