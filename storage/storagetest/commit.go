package storagetest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func commitTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"transactions alone":                    commitTransactionsAlone,
		"all there is":                          commitAll,
		"many copies":                           commitMany,
		"megabytes":                             commitMegabytes,
		"all or nothing: many rows":             commitLarge,
		"all or nothing: message there":         commitDuplicateMessage,
		"all or nothing: device twice":          commitDeviceTwice,
		"all or nothing: transaction there":     commitDuplicateTransaction,
		"all or nothing: EDU there":             commitDuplicateEDU,
		"all or nothing: EDU twice":             commitEDUTwice,
		"all or nothing: context ended":         commitCancelled,
		"fenced: another writer":                commitOldWriter,
		"fenced: wrong previous":                commitWrongPrevious,
		"fenced: repeated":                      commitRepeated,
		"fenced: a writer that never claimed":   commitUnclaimed,
		"last may lie beyond the last delivery": commitLastBeyond,
	}
}

func commitTransactionsAlone(f *fixture) {
	key := types.TransactionKey{Device: alice, EventType: eventType, TransactionID: "1"}
	f.commit(f.batch(nil, transaction(key, 1)))
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
	stored, err := f.store.Stored(f.ctx, []types.TransactionKey{key})
	f.must(err)
	if len(stored) != 1 {
		f.Error("the transaction was not stored")
	}
}

// One position may stand in a queue and in the lines of several destinations.
func commitAll(f *fixture) {
	fresh := f.freshTransaction()
	batch := f.eduBatch(edu(remote, `{"n":1}`), edu(elsewhere, `{"n":2}`), edu(remote, `{"n":3}`))
	batch.EDUs[1].Position = batch.EDUs[0].Position
	d := delivery(`{}`, alice)
	d.Position = batch.EDUs[0].Position
	batch.Deliveries, batch.Transactions = []storage.Delivery{d}, []storage.Transaction{fresh}
	f.commit(batch)
	f.wantMessages(alice, sent(batch.Deliveries))
	f.wantLine(remote, []storage.EDU{batch.EDUs[0], batch.EDUs[2]})
	f.wantLine(elsewhere, batch.EDUs[1:2])
	f.wantStored([]types.TransactionKey{fresh.TransactionKey}, 0)
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

func commitMany(f *fixture) {
	// More than any chunk, and not a multiple of one.
	const copies = 5003
	d := storage.Delivery{Sender: sender, Type: eventType}
	for i := range copies {
		d.Copies = append(d.Copies, storage.Copy{
			Device:  types.Device{UserID: "@alice:example.org", DeviceID: fmt.Sprint(i)},
			Content: fmt.Appendf(nil, `{"n":%d}`, i),
		})
	}
	var transactions []storage.Transaction
	var keys []types.TransactionKey
	for i := range copies {
		key := types.TransactionKey{Device: bob, EventType: eventType, TransactionID: fmt.Sprint(i)}
		keys = append(keys, key)
		transactions = append(transactions, transaction(key, 1))
	}
	f.commit(f.batch([]storage.Delivery{d, delivery(`{"last":1}`, types.Device{UserID: alice.UserID, DeviceID: "0"})}, transactions...))
	for i, c := range d.Copies {
		got := f.messages(c.Device)
		if i == 0 && len(got) == 2 {
			got = got[:1]
		}
		if len(got) != 1 || string(got[0].Content) != string(c.Content) {
			f.Fatalf("device %d has %d messages", i, len(got))
		}
	}
	stored, err := f.store.Stored(f.ctx, keys)
	f.must(err)
	if len(stored) != copies {
		f.Errorf("%d of %d transactions are there", len(stored), copies)
	}
	f.wantLine(remote, f.queue(remote, copies))
}

func commitMegabytes(f *fixture) {
	content := `{"c":"` + strings.Repeat("x", 64<<10) + `"}`
	var deliveries []storage.Delivery
	for range 150 {
		deliveries = append(deliveries, delivery(content, alice))
	}
	deliveries = append(deliveries, delivery(`{"c":"`+strings.Repeat("y", 6<<20)+`"}`, alice))
	f.commit(f.batch(deliveries))
	f.wantMessages(alice, sent(deliveries))

	var edus []storage.EDU
	for _, d := range deliveries {
		edus = append(edus, edu(remote, string(d.Copies[0].Content)))
	}
	f.commit(f.eduBatch(edus...))
	f.wantLine(remote, edus)
}

// wantNothingStored commits a batch that has to fail, and checks that it left no trace.
func (f *fixture) wantNothingStored(ctx context.Context, store storage.Store, batch storage.Batch) error {
	f.Helper()
	before, err := f.store.State(f.ctx)
	f.must(err)
	var keys []types.TransactionKey
	for _, t := range batch.Transactions {
		keys = append(keys, t.TransactionKey)
	}
	storedBefore, err := f.store.Stored(f.ctx, keys)
	f.must(err)
	queues := map[types.Device][]types.Message{}
	for _, d := range batch.Deliveries {
		for _, c := range d.Copies {
			queues[c.Device] = f.messages(c.Device)
		}
	}
	lines := map[string][]storage.EDU{}
	for _, e := range batch.EDUs {
		lines[e.Destination] = f.line(e.Destination)
	}

	failure := store.Commit(ctx, batch)
	if failure == nil {
		f.Fatal("the commit did not fail")
	}
	f.wantState(before)
	for device, queue := range queues {
		f.wantMessages(device, queue)
	}
	for destination, line := range lines {
		f.wantLine(destination, line)
	}
	stored, err := f.store.Stored(f.ctx, keys)
	f.must(err)
	if len(stored) != len(storedBefore) {
		f.Errorf("%d transactions are there, want %d", len(stored), len(storedBefore))
	}
	return failure
}

func (f *fixture) freshTransaction() storage.Transaction {
	return transaction(types.TransactionKey{Device: bob, EventType: eventType, TransactionID: "fresh"}, 1)
}

// wantFinal is for what no repetition can make succeed.
func (f *fixture) wantFinal(err error) {
	f.Helper()
	for _, kind := range []error{storage.ErrTransient, storage.ErrFenced, storage.ErrLocked} {
		if errors.Is(err, kind) {
			f.Errorf("the error %q wraps %q", err, kind)
		}
	}
	if strings.Contains(err.Error(), secret) {
		f.Errorf("the error shows content: %v", err)
	}
}

const secret = "hush"

func commitDuplicateMessage(f *fixture) {
	queued := f.send(alice, 1)
	batch := f.batch([]storage.Delivery{
		delivery(`{"s":"hush"}`, bob), delivery(`{"s":"hush"}`, bob), delivery(`{"s":"hush"}`, bob, alice),
	}, f.freshTransaction())
	batch.Deliveries[2].Position = queued[0].Position - 1 // of bob's copy
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	f.send(alice, 1)
}

func commitDeviceTwice(f *fixture) {
	batch := f.batch([]storage.Delivery{delivery(`{"s":"hush"}`, bob, alice, bob)}, f.freshTransaction())
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	f.send(bob, 1)
}

func commitDuplicateTransaction(f *fixture) {
	there := f.freshTransaction()
	f.commit(f.batch(nil, there))
	other := transaction(types.TransactionKey{Device: bob, EventType: eventType, TransactionID: "other"}, 1)
	batch := f.batch([]storage.Delivery{delivery(`{"s":"hush"}`, alice)}, other, there)
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrStored)
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	batch.Previous--
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)
	batch = f.large()
	batch.Transactions = append(batch.Transactions, there)
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrStored)
	f.send(alice, 1)
}

// large is a batch with so many messages and EDUs that a store may insert them in a way of its own.
func (f *fixture) large() storage.Batch {
	var edus []storage.EDU
	for i := range 100 {
		edus = append(edus, edu(remote, fmt.Sprintf(`{"s":"hush","n":%d}`, i)))
	}
	batch := f.eduBatch(edus...)
	d := storage.Delivery{Sender: sender, Type: eventType, Position: batch.Last + 1}
	for i := range 100 {
		device := types.Device{UserID: alice.UserID, DeviceID: fmt.Sprint(i)}
		d.Copies = append(d.Copies, storage.Copy{Device: device, Content: fmt.Appendf(nil, `{"s":"hush","n":%d}`, i)})
	}
	batch.Deliveries, batch.Last = []storage.Delivery{d}, batch.Last+100
	batch.Transactions = []storage.Transaction{f.freshTransaction()}
	return batch
}

// What is wrong with one row of many leaves nothing behind, and a fence is told from it.
func commitLarge(f *fixture) {
	batch := f.large()
	f.commit(batch)
	f.wantLine(remote, batch.EDUs)
	for i, c := range batch.Deliveries[0].Copies {
		f.wantMessages(c.Device, sentTo(batch.Deliveries, i))
	}
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)

	batch = f.large()
	batch.Transactions, batch.Deliveries[0].Position = nil, batch.Deliveries[0].Position-200 // where the first one has its messages
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	batch = f.large()
	batch.Transactions, batch.EDUs[99].Position = nil, batch.EDUs[98].Position
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	batch = f.large()
	batch.Transactions, batch.Writer = nil, "second"
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	batch.Writer = f.writer
	f.mustBe(f.wantNothingStored(ctx, f.store, batch), context.Canceled)
	f.commit(batch)
}

func commitDuplicateEDU(f *fixture) {
	there := f.queue(remote, 1)
	batch := f.eduBatch(edu(elsewhere, `{"s":"hush"}`), edu(remote, `{"s":"hush"}`))
	batch.EDUs[1].Position = there[0].Position
	d := delivery(`{}`, alice)
	d.Position = batch.Last
	batch.Deliveries, batch.Transactions = []storage.Delivery{d}, []storage.Transaction{f.freshTransaction()}
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	f.wantDestinations(destinationsWaiting(remote)...)
	f.queue(remote, 1)
}

func commitEDUTwice(f *fixture) {
	batch := f.eduBatch(edu(remote, `{"s":"hush"}`), edu(elsewhere, `{"s":"hush"}`), edu(remote, `{"s":"hush"}`))
	batch.EDUs[2].Position = batch.EDUs[0].Position
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	f.queue(remote, 1)
}

func commitCancelled(f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	err := f.wantNothingStored(ctx, f.store, f.batch([]storage.Delivery{delivery(`{}`, alice)}))
	f.mustBe(err, context.Canceled)
	f.mustBe(err, storage.ErrTransient)
	f.send(alice, 1)
}

func commitOldWriter(f *fixture) {
	f.send(alice, 1)
	second := f.open(f)
	last, err := second.Claim(f.ctx, "second", 0)
	f.must(err)
	batch := f.batch([]storage.Delivery{delivery(`{}`, alice)}, f.freshTransaction())
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)
	batch.Previous, batch.Last = last, last+1
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)
	f.wantState(storage.State{Writer: "second", Last: last})
	f.store, f.writer, f.last = second, "second", last
	f.send(alice, 1)
}

func commitWrongPrevious(f *fixture) {
	f.send(alice, 1)
	for _, off := range []types.Position{-1, 1, 1000} {
		batch := f.batch([]storage.Delivery{delivery(`{}`, alice)}, f.freshTransaction())
		batch.Previous, batch.Last = batch.Previous+off, batch.Last+1001
		f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)
	}
	f.send(alice, 1)
}

func commitRepeated(f *fixture) {
	batch := f.batch([]storage.Delivery{delivery(`{}`, alice)}, f.freshTransaction())
	f.commit(batch)
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)
	f.wantState(storage.State{Writer: f.writer, Last: batch.Last})
}

func commitUnclaimed(f *fixture) {
	batch := f.batch([]storage.Delivery{delivery(`{}`, alice)})
	batch.Writer = ""
	f.wantFinal(f.wantNothingStored(f.ctx, f.store, batch))
	batch.Writer = "never claimed"
	f.mustBe(f.wantNothingStored(f.ctx, f.store, batch), storage.ErrFenced)
}

func commitLastBeyond(f *fixture) {
	batch := f.batch([]storage.Delivery{delivery(`{}`, alice)})
	batch.Last += 1 << 40
	f.commit(batch)
	f.wantState(storage.State{Writer: f.writer, Last: batch.Last})
	f.wantMessages(alice, sent(batch.Deliveries))
}
