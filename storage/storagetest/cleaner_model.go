package storagetest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// recordRandom makes transaction records, some of them of another server.
func (m *model) recordRandom() []storage.Transaction {
	var transactions []storage.Transaction
	for i := range m.random.IntN(4) {
		key := types.TransactionKey{EventType: fmt.Sprint("m.", i), TransactionID: fmt.Sprint(m.last)}
		key.Device = append(m.devices, types.Device{UserID: remote})[m.random.IntN(len(m.devices)+1)]
		m.records[key.Device] = append(m.records[key.Device], key)
		transactions = append(transactions, transaction(key, 1))
	}
	return transactions
}

func (m *model) cleanRandom() {
	device := m.devices[m.random.IntN(len(m.devices))]
	switch m.random.IntN(3) {
	case 0:
		m.must(m.store.Forget(m.ctx, device))
		delete(m.records, device)
	case 1:
		m.purge(device, m.position())
	default:
		m.boundRandom(device)
	}
}

func (m *model) purge(device types.Device, through types.Position) {
	kept := slices.DeleteFunc(slices.Clone(m.queues[device]), func(message types.Message) bool { return message.Position <= through })
	purged, err := m.store.Purge(m.ctx, device, through)
	m.must(err)
	if want := len(m.queues[device]) - len(kept); purged != want {
		m.Fatalf("%d messages were purged, want %d", purged, want)
	}
	m.queues[device] = kept
}

func (m *model) boundRandom(device types.Device) {
	queue := m.queues[device]
	messages, bytes := m.random.IntN(8), int64(m.random.IntN(200))
	total, first := int64(0), len(queue)
	for ; first > 0; first-- {
		total += int64(len(queue[first-1].Content))
		left := len(queue) - first + 1
		if left > 1 && (messages > 0 && left > messages || bytes > 0 && total > bytes) {
			break
		}
	}
	want := types.Position(0)
	if first > 0 {
		want = queue[first-1].Position
	}
	got, err := m.store.Excess(m.ctx, device, messages, bytes)
	m.must(err)
	if got != want {
		m.Fatalf("with the limits %d and %d the excess ends at %d, want %d", messages, bytes, got, want)
	}
	if m.random.IntN(2) == 0 {
		m.purge(device, got)
		m.wantExcess(device, messages, bytes, 0)
	}
}

func (m *model) wantAllKept() {
	kept := map[string][]string{}
	for _, device := range m.devices {
		if len(m.queues[device]) > 0 || len(m.records[device]) > 0 {
			kept[device.UserID] = append(kept[device.UserID], device.DeviceID)
		}
	}
	m.wantUsers(1+m.random.IntN(4), slices.Collect(maps.Keys(kept))...)
	for _, device := range m.devices {
		m.wantDevices(device.UserID, kept[device.UserID]...)
	}
	var keys []types.TransactionKey
	for _, some := range m.records {
		keys = append(keys, some...)
	}
	stored, err := m.store.Stored(m.ctx, keys)
	m.must(err)
	if len(stored) != len(keys) {
		m.Fatalf("%d transaction records are there, want %d", len(stored), len(keys))
	}
}

func (m *model) wantAllQueues() {
	var want []storage.Queue
	for _, device := range m.devices {
		if messages := m.queues[device]; len(messages) > 0 {
			want = append(want, queueOf(device, messages))
		}
	}
	m.wantQueues(1+m.random.IntN(4), want)
}
