// Package storagetest is what every implementation of storage.Store has to pass.
package storagetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Opener opens a store on one test's database, each time as another process would. It closes what
// it opened when t ends.
type Opener func(t testing.TB) storage.Store

// Run runs the suite. newDatabase makes an empty database for one test, without tables.
func Run(t *testing.T, newDatabase func(t *testing.T) Opener) {
	groups := map[string]map[string]func(*fixture){
		"Messages":      messageTests(),
		"Commit":        commitTests(),
		"Position":      positionTests(),
		"Transactions":  transactionTests(),
		"Acknowledge":   acknowledgeTests(),
		"Concurrent":    concurrentTests(),
		"Refused":       refusalTests(),
		"Outbox":        outboxTests(),
		"OutboxRefused": outboxRefusedTests(),
		"Cleaner":       cleanerTests(),
		"Inspector":     inspectorTests(),
		"Lines":         lineTests(),
		"Model":         modelTests(),
		"Mover":         moverTests(),
	}
	for group, tests := range groups {
		t.Run(group, func(t *testing.T) {
			for name, test := range tests {
				t.Run(name, func(t *testing.T) { test(newFixture(t, newDatabase(t))) })
			}
		})
	}
	t.Run("Migrate", func(t *testing.T) { runMigrate(t, newDatabase) })
	t.Run("Lock", func(t *testing.T) { runLock(t, newDatabase) })
}

// waitLimit is far beyond what any call takes: it turns a hang into a failure.
const waitLimit = time.Minute

var (
	alice = types.Device{UserID: "@alice:example.org", DeviceID: "PHONE"}
	bob   = types.Device{UserID: "@bob:example.org", DeviceID: "LAPTOP"}
)

const (
	sender    = "@carol:example.org"
	eventType = "m.room.encrypted"
	everLater = types.Position(1 << 62)
)

// fixture is a migrated and claimed store, and the last position it left behind.
type fixture struct {
	*testing.T
	ctx    context.Context
	open   Opener
	store  storage.Store
	writer string
	last   types.Position
}

func newFixture(t *testing.T, open Opener) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	t.Cleanup(cancel)
	f := &fixture{T: t, ctx: ctx, open: open, store: open(t), writer: "first"}
	f.must(f.store.Migrate(ctx))
	f.claim()
	return f
}

func (f *fixture) claim() {
	f.Helper()
	last, err := f.store.Claim(f.ctx, f.writer, 1000)
	f.must(err)
	f.last = last
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) mustBe(err, target error) {
	f.Helper()
	if !errors.Is(err, target) {
		f.Fatalf("got the error %v, want %v", err, target)
	}
}

// batch makes a batch whose messages have the positions after f.last.
func (f *fixture) batch(deliveries []storage.Delivery, transactions ...storage.Transaction) storage.Batch {
	last := f.last
	for i := range deliveries {
		deliveries[i].Position = last + 1
		last += types.Position(max(1, len(deliveries[i].Copies)))
	}
	return storage.Batch{
		Writer:       f.writer,
		Previous:     f.last,
		Last:         max(last, f.last+1),
		Deliveries:   deliveries,
		Transactions: transactions,
	}
}

// commit stores the batch and takes over its last position.
func (f *fixture) commit(batch storage.Batch) {
	f.Helper()
	f.must(f.store.Commit(f.ctx, batch))
	f.last = batch.Last
}

// send commits n messages to the device, one position each, and returns what Messages should give.
func (f *fixture) send(device types.Device, n int) []types.Message {
	f.Helper()
	var deliveries []storage.Delivery
	for i := range n {
		deliveries = append(deliveries, delivery(fmt.Sprintf(`{"n":%d}`, i), device))
	}
	f.commit(f.batch(deliveries))
	return sent(deliveries)
}

func (f *fixture) messages(device types.Device) []types.Message {
	f.Helper()
	messages, err := f.store.Messages(f.ctx, device, 0, everLater, 1<<20, nil)
	f.must(err)
	return messages
}

func (f *fixture) wantMessages(device types.Device, want []types.Message) {
	f.Helper()
	f.same(f.messages(device), want)
}

func (f *fixture) wantState(want storage.State) {
	f.Helper()
	state, err := f.store.State(f.ctx)
	f.must(err)
	if state != want {
		f.Fatalf("the state is %+v, want %+v", state, want)
	}
}

func (f *fixture) same(got, want []types.Message) {
	f.Helper()
	if len(got) != len(want) {
		f.Fatalf("got %d messages, want %d", len(got), len(want))
	}
	for i := range want {
		g, w := got[i], want[i]
		if g.Position != w.Position || g.Sender != w.Sender || g.Type != w.Type || string(g.Content) != string(w.Content) {
			f.Fatalf("message %d is %+v, want %+v", i, g, w)
		}
	}
}

func delivery(content string, devices ...types.Device) storage.Delivery {
	d := storage.Delivery{Sender: sender, Type: eventType}
	for _, device := range devices {
		d.Copies = append(d.Copies, storage.Copy{Device: device, Content: []byte(content)})
	}
	return d
}

// sent is what a device that got the first copy of each delivery should read.
func sent(deliveries []storage.Delivery) []types.Message { return sentTo(deliveries, 0) }

// sentTo is what a device that got copy i of each delivery should read.
func sentTo(deliveries []storage.Delivery, i int) []types.Message {
	var messages []types.Message
	for _, d := range deliveries {
		messages = append(messages, types.Message{
			Position: d.Position + types.Position(i), Sender: d.Sender, Type: d.Type, Content: d.Copies[i].Content,
		})
	}
	return messages
}
