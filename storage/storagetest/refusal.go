package storagetest

import (
	"encoding/base64"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func refusalTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"text that no database takes": refuseText,
		"positions out of order":      refusePositions,
		"IDs up to the limit":         refuseLength,
		"EDUs":                        refuseEDUs,
	}
}

func refuseText(f *fixture) {
	for _, bad := range []string{"a\x00b", "\xff\xfe", "\xed\xa0\x80"} {
		batches := map[string]func(*storage.Batch){
			"user":        func(b *storage.Batch) { b.Deliveries[1].Copies[0].UserID = bad },
			"device":      func(b *storage.Batch) { b.Deliveries[1].Copies[0].DeviceID = bad },
			"sender":      func(b *storage.Batch) { b.Deliveries[1].Sender = bad },
			"type":        func(b *storage.Batch) { b.Deliveries[1].Type = bad },
			"content":     func(b *storage.Batch) { b.Deliveries[1].Copies[0].Content = []byte(secret + bad) },
			"txn user":    func(b *storage.Batch) { b.Transactions[0].UserID = bad },
			"txn device":  func(b *storage.Batch) { b.Transactions[0].DeviceID = bad },
			"txn type":    func(b *storage.Batch) { b.Transactions[0].EventType = bad },
			"transaction": func(b *storage.Batch) { b.Transactions[0].TransactionID = bad },
		}
		for name, spoil := range batches {
			batch := f.batch([]storage.Delivery{delivery(`{}`, alice), delivery(`{}`, bob)}, f.freshTransaction())
			spoil(&batch)
			err := f.store.Commit(f.ctx, batch)
			if err == nil {
				f.Fatalf("%s: %q was accepted", name, bad)
			}
			f.wantFinal(err)
		}
		device := types.Device{UserID: bad, DeviceID: alice.DeviceID}
		_, err := f.store.Messages(f.ctx, device, 0, everLater, 1, nil)
		f.wantRefused(err)
		_, err = f.store.Stored(f.ctx, []types.TransactionKey{{Device: device}})
		f.wantRefused(err)
		_, err = f.store.Acknowledge(f.ctx, []storage.Acknowledgement{through(device, 1)}, 1)
		f.wantRefused(err)
		_, err = f.store.Claim(f.ctx, bad, 0)
		f.wantRefused(err)
	}
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
	f.wantMessages(alice, nil)
	f.send(alice, 1)
}

func refuseEDUs(f *fixture) {
	spoils := map[string]func(*storage.EDU){
		"no destination":   func(e *storage.EDU) { e.Destination = "" },
		"long destination": func(e *storage.EDU) { e.Destination = strings.Repeat("x", 256) },
	}
	for _, bad := range []string{"a\x00b", "\xff\xfe", "\xed\xa0\x80"} {
		spoils[fmt.Sprintf("destination %q", bad)] = func(e *storage.EDU) { e.Destination = bad }
		spoils[fmt.Sprintf("origin %q", bad)] = func(e *storage.EDU) { e.Origin = bad }
		spoils[fmt.Sprintf("message ID %q", bad)] = func(e *storage.EDU) { e.MessageID = bad }
		spoils[fmt.Sprintf("content %q", bad)] = func(e *storage.EDU) { e.Content = []byte(secret + bad) }
	}
	for name, spoil := range spoils {
		batch := f.eduBatch(edu(remote, `{}`), edu(remote, `{}`))
		spoil(&batch.EDUs[1])
		err := f.store.Commit(f.ctx, batch)
		refuseErr := f.store.Refuse(f.ctx, storage.Refusal{EDU: batch.EDUs[1], RetryAt: moment(1)})
		if err == nil || refuseErr == nil {
			f.Fatalf("%s: was accepted (%v, %v)", name, err, refuseErr)
		}
		f.wantFinal(err)
		f.wantFinal(refuseErr)
	}
	batch := f.eduBatch(edu(remote, `{}`))
	batch.EDUs[0].Position = batch.Last + 1
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	f.wantDestinations()
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
	f.queue(incompressible(255), 1)
}

func (f *fixture) wantRefused(err error) {
	f.Helper()
	if err == nil {
		f.Fatal("the call was not refused")
	}
	f.wantFinal(err)
}

func refusePositions(f *fixture) {
	batch := f.batch([]storage.Delivery{delivery(`{}`, alice)})
	batch.Deliveries[0].Position = batch.Last + 1
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	batch = f.batch([]storage.Delivery{delivery(`{}`, alice, bob)})
	for _, position := range []types.Position{batch.Last, batch.Last + 1, math.MaxInt64} {
		batch.Deliveries[0].Position = position
		f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	}

	batch = f.batch(nil)
	batch.Last = batch.Previous
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
}

func refuseLength(f *fixture) {
	// Nothing that compresses: PostgreSQL compresses index entries.
	long := incompressible(storage.MaxKeyBytes)
	device := types.Device{UserID: "@" + long[:254], DeviceID: long[255:]}
	f.send(device, 1)
	key := types.TransactionKey{Device: alice}
	rest := storage.MaxKeyBytes - len(alice.UserID) - len(alice.DeviceID)
	key.EventType, key.TransactionID = long[:rest/2], long[rest/2:rest]
	f.commit(f.batch(nil, transaction(key, 1)))
	if stored, err := f.store.Stored(f.ctx, []types.TransactionKey{key}); err != nil || len(stored) != 1 {
		f.Errorf("got %d keys and the error %v", len(stored), err)
	}

	device.DeviceID += "x"
	f.wantRefused(f.store.Commit(f.ctx, f.batch([]storage.Delivery{delivery(`{}`, device)})))
	key.TransactionID += "x"
	f.wantRefused(f.store.Commit(f.ctx, f.batch(nil, transaction(key, 1))))
}

func incompressible(length int) string {
	random := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 0, length)
	for len(text) < length {
		text = base64.StdEncoding.AppendEncode(text, []byte{byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())})
	}
	return string(text[:length])
}
