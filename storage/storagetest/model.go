package storagetest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func modelTests() map[string]func(*fixture) {
	return map[string]func(*fixture){"random calls": modelRandom, "random calls for the outbox": modelOutbox}
}

// random returns a source whose seed is told if the test fails.
func (f *fixture) random() *rand.Rand {
	seed := rand.Uint64()
	f.Cleanup(func() {
		if f.Failed() {
			f.Logf("the seed is %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// model is the contract in plain Go: a queue for each device.
type model struct {
	*fixture
	random  *rand.Rand
	devices []types.Device
	queues  map[types.Device][]types.Message
	records map[types.Device][]types.TransactionKey
}

var modelSenders = [...]string{"@a:x", "@b:x", "@c:x"}

func modelRandom(f *fixture) {
	m := &model{fixture: f, random: f.random(), queues: map[types.Device][]types.Message{}, records: map[types.Device][]types.TransactionKey{}}
	for user := range 3 {
		for device := range 3 {
			m.devices = append(m.devices, types.Device{UserID: fmt.Sprintf("@%d:x", user), DeviceID: fmt.Sprint(device)})
		}
	}
	for range 300 {
		switch m.random.IntN(9) {
		case 0, 1:
			m.commitRandom()
		case 2, 3:
			m.acknowledgeRandom()
		case 4:
			m.cleanRandom()
		case 5:
			m.wantAllKept()
		case 6:
			m.wantAllQueues()
		default:
			m.readRandom()
		}
	}
	for _, device := range m.devices {
		f.wantMessages(device, m.queues[device])
	}
}

func (m *model) commitRandom() {
	var deliveries []storage.Delivery
	for i := range m.random.IntN(6) {
		d := storage.Delivery{Sender: modelSenders[m.random.IntN(3)], Type: fmt.Sprint("m.", i)}
		for _, device := range m.devices {
			if m.random.IntN(3) == 0 {
				d.Copies = append(d.Copies, storage.Copy{Device: device, Content: fmt.Appendf(nil, `{"r":%d}`, m.random.Int())})
			}
		}
		deliveries = append(deliveries, d)
	}
	m.commit(m.batch(deliveries, m.recordRandom()...))
	for _, d := range deliveries {
		for i, c := range d.Copies {
			m.queues[c.Device] = append(m.queues[c.Device], types.Message{Position: d.Position + types.Position(i), Sender: d.Sender, Type: d.Type, Content: c.Content})
		}
	}
}

func (m *model) position() types.Position {
	return m.last - 20 + types.Position(m.random.IntN(25))
}

func (m *model) acknowledgeRandom() {
	limit := 1 + m.random.IntN(4)
	var acknowledgements []storage.Acknowledgement
	for _, i := range m.random.Perm(len(m.devices))[:m.random.IntN(len(m.devices))] {
		acknowledgements = append(acknowledgements, through(m.devices[i], m.position()))
	}
	want := deleted{}
	for _, a := range acknowledgements {
		covered := 0
		for _, message := range m.queues[a.Device] {
			if message.Position <= a.Through {
				covered++
			}
		}
		m.queues[a.Device] = m.queues[a.Device][min(covered, limit):]
		if covered > 0 {
			want[a] = min(covered, limit)
		}
	}
	m.wantAcknowledged(limit, want, acknowledgements...)
}

func (m *model) readRandom() {
	device := m.devices[m.random.IntN(len(m.devices))]
	after, until, limit := m.position(), m.position(), m.random.IntN(6)
	except := modelSenders[:m.random.IntN(3)]
	got, err := m.store.Messages(m.ctx, device, after, until, limit, except)
	m.must(err)
	var want []types.Message
	for _, message := range m.queues[device] {
		if message.Position > after && message.Position <= until && !slices.Contains(except, message.Sender) && len(want) < limit {
			want = append(want, message)
		}
	}
	m.same(got, want)
}
