package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/tracetest"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	here  = "here.example.org"
	there = "there.example.org"
)

func quiet() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// failer is a *testing.T or a *rapid.T.
type failer interface {
	reporter
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// fixture is an outbox on a real database, between a host and a remote server of the test's.
type fixture struct {
	*outbox.Outbox
	failer
	ctx    context.Context
	real   *testdb.Store
	store  *store
	clock  *clock
	host   *host
	remote *remote

	writer   string
	last     types.Position
	mu       sync.Mutex
	outcomes map[outbox.Outcome]int
	traced   tracetest.Recorder
	hostID   int // of the host's transactions, which it keeps until one succeeds
}

// each runs f on each database, with an outbox that is not started yet.
func each(t *testing.T, f func(*fixture)) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) { f(newFixture(t, open(t))) })
}

// onSQLite is for what has nothing to do with the database.
func onSQLite(t *testing.T) *fixture { return newFixture(t, testdb.SQLite(t)(t)) }

func newFixture(t *testing.T, real *testdb.Store) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	f := &fixture{failer: t, ctx: ctx, real: real, store: &store{Outbox: real}, clock: newClock(), host: newHost(), remote: newRemote(t)}
	if err := real.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	f.claim()
	f.renew()
	t.Cleanup(func() {
		f.stop()
		cancel()
	})
	return f
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) claim() {
	var err error
	f.writer = "writer"
	f.last, err = f.real.Claim(f.ctx, f.writer, 1)
	f.must(err)
}

// renew makes an outbox that knows nothing but what is stored.
func (f *fixture) renew() {
	f.outcomes = make(map[outbox.Outcome]int)
	f.Outbox = outbox.New(outbox.Options{
		Store: f.store, Aside: f.real, Host: f.host, Log: quiet(), Now: f.clock.Now, Linger: time.Millisecond,
		Trace: &f.traced,
		Observe: func(outcome outbox.Outcome, edus int) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.outcomes[outcome] += edus
		},
	})
}

func (f *fixture) start() {
	f.Helper()
	f.must(f.Start(f.ctx))
}

func (f *fixture) stop() {
	if f.Outbox != nil && f.Started() {
		if err := f.Stop(f.ctx); err != nil {
			f.Errorf("stopping failed: %v", err)
		}
	}
	f.Outbox = nil
}

// restart is what a new process finds.
func (f *fixture) restart() {
	f.Helper()
	f.stop()
	f.renew()
	f.start()
}

// edu is a message of which the ID says all.
func edu(destination, id string) storage.EDU {
	content := fmt.Sprintf(`{"message_id":%q,"messages":{"@bob:%s":{"*":{}}},"sender":"@alice:%s","type":"org.example"}`, id, destination, here)
	return storage.EDU{Destination: destination, Origin: here, MessageID: id, Content: []byte(content)}
}

// edus are n messages, of which the IDs begin with the prefix.
func edus(destination, prefix string, n int) (all []storage.EDU) {
	for i := range n {
		all = append(all, edu(destination, fmt.Sprintf("%s%03d", prefix, i)))
	}
	return all
}

// add stores EDUs, as the writer does, and returns their IDs.
func (f *fixture) add(all ...storage.EDU) (ids []string) {
	f.Helper()
	f.commit(all)
	f.Added(all)
	for i := range all {
		ids = append(ids, all[i].MessageID)
	}
	return ids
}

func (f *fixture) commit(all []storage.EDU) {
	f.Helper()
	batch := storage.Batch{Writer: f.writer, Previous: f.last}
	for i := range all {
		f.last++
		all[i].Position = f.last
	}
	batch.Last, batch.EDUs = f.last, all
	f.must(f.real.Commit(f.ctx, batch))
}

// line returns the IDs of what waits for a destination.
func (f *fixture) line(destination string) (ids []string) {
	f.Helper()
	waiting, err := f.real.Waiting(f.ctx, destination, 0, math.MaxInt64, math.MaxInt32, math.MaxInt32)
	f.must(err)
	for i := range waiting {
		ids = append(ids, waiting[i].MessageID)
	}
	return ids
}

// aside returns what a destination refused and is to be sent again.
func (f *fixture) aside(destination string) []storage.Refusal {
	f.Helper()
	refused, err := f.real.Refused(f.ctx, destination, f.clock.Now().Add(24*time.Hour), math.MaxInt32)
	f.must(err)
	return refused
}

// doorbell is what the host makes of a ring.
func doorbell() gomatrixserverlib.EDU {
	content, err := json.Marshal(gomatrixserverlib.ToDeviceMessage{
		Sender: "@doorbell:" + here, Type: outbox.DoorbellType, MessageID: "random",
		Messages: map[string]map[string]json.RawMessage{"@doorbell:" + there: {"doorbell": json.RawMessage(`{}`)}},
	})
	if err != nil {
		panic(err)
	}
	return gomatrixserverlib.EDU{Type: spec.MDirectToDevice, Origin: here, Content: content}
}

func typing(n int) gomatrixserverlib.EDU {
	return gomatrixserverlib.EDU{Type: spec.MTyping, Origin: here, Content: fmt.Appendf(nil, `{"n":%d}`, n)}
}

func typings(n int) (all []gomatrixserverlib.EDU) {
	for i := range n {
		all = append(all, typing(i))
	}
	return all
}

// transaction is one of the host's, with a doorbell beside what is given.
func (f *fixture) transaction(destination string, pdus []string, hosts ...gomatrixserverlib.EDU) gomatrixserverlib.Transaction {
	t := gomatrixserverlib.Transaction{
		TransactionID:  gomatrixserverlib.TransactionID(fmt.Sprintf("1893553445000-%d", f.hostID)),
		Origin:         here,
		Destination:    spec.ServerName(destination),
		OriginServerTS: spec.AsTimestamp(f.clock.Now()),
		PDUs:           []json.RawMessage{},
		EDUs:           append([]gomatrixserverlib.EDU{doorbell()}, hosts...),
	}
	for _, pdu := range pdus {
		t.PDUs = append(t.PDUs, json.RawMessage(pdu))
	}
	return t
}

// send is the host's transaction to there, with a doorbell and what is given.
func (f *fixture) send(hosts ...gomatrixserverlib.EDU) error {
	return f.sendTransaction(f.transaction(there, nil, hosts...))
}

func (f *fixture) sendTransaction(t gomatrixserverlib.Transaction) error {
	err := f.Send(f.ctx, t, f.remote.deliver)
	if err == nil {
		f.hostID++
	}
	return err
}

func (f *fixture) wantArrived(want []string) {
	f.Helper()
	if got := f.remote.got(); !slices.Equal(got, want) {
		f.Fatalf("arrived: %q\nwant: %q", got, want)
	}
}

func (f *fixture) wantLine(destination string, want []string) {
	f.Helper()
	if got := f.line(destination); !slices.Equal(got, want) {
		f.Fatalf("waiting: %q\nwant: %q", got, want)
	}
}

func (f *fixture) wantForgotten() {
	f.Helper()
	f.settle()
	if f.Destinations() != 0 || f.Remembered() != 0 {
		f.Fatalf("something waits for %d destinations and %d are remembered, want none", f.Destinations(), f.Remembered())
	}
}

func (f *fixture) settle() {
	f.Helper()
	if err := f.Settle(f.ctx); err != nil {
		f.Fatalf("the watch did not come to rest: %v", err)
	}
}

func (f *fixture) waitFor(what string, condition func() bool) {
	f.Helper()
	for !condition() {
		if f.ctx.Err() != nil {
			f.Fatalf("it never happened that %s", what)
		}
		f.Wake()
		time.Sleep(time.Millisecond)
	}
}
