package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/nats-io/nats.go"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// leftoversTest is the host's NATS with its streams, and a store that knows what it has, as the module's does.
type leftoversTest struct {
	config  *config.Dendrite
	process *process.ProcessContext
	js      nats.JetStreamContext
	log     *logtest.Hook

	mu       sync.Mutex
	commits  int
	stored   []string // contents
	known    map[string]bool
	repeated int
	before   func() error // is called before entries are stored

	unreadable []consumers.Entry
}

func newLeftoversTest(t *testing.T) *leftoversTest {
	t.Helper()
	test := &leftoversTest{
		config: &config.Dendrite{}, process: process.NewProcessContext(), known: map[string]bool{},
		before: func() error { return nil },
	}
	cfg := &test.config.Global.JetStream
	cfg.Defaults(config.DefaultOpts{Generate: true})
	cfg.Matrix, cfg.InMemory, cfg.StoragePath = &test.config.Global, true, config.Path(t.TempDir())
	var instance jetstream.NATSInstance
	test.js, _ = instance.Prepare(test.process, cfg)
	t.Cleanup(test.shutDown)
	return test
}

func (test *leftoversTest) shutDown() {
	test.process.ShutdownDendrite()
	test.process.WaitForComponentsToFinish()
}

func (test *leftoversTest) stream() string {
	return test.config.Global.JetStream.Prefixed(jetstream.OutputSendToDeviceEvent)
}

func (test *leftoversTest) durable() string {
	return test.config.Global.JetStream.Durable("SyncAPISendToDeviceConsumer")
}

func (test *leftoversTest) newLeftovers() *leftovers {
	log, hook := logtest.NewNullLogger()
	test.log = hook
	return &leftovers{
		connect: func() (nats.JetStreamContext, func(), error) { return test.js, func() {}, nil },
		stream:  test.stream(), durable: test.durable() + "Pull", receive: test.receive, log: logrus.NewEntry(log),
	}
}

// start returns a channel that is closed when the consumer has ended.
func (test *leftoversTest) start(t *testing.T, ctx context.Context) <-chan struct{} {
	t.Helper()
	l := test.newLeftovers()
	if err := l.subscribe(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.run(ctx)
	}()
	return ended
}

func (test *leftoversTest) receive(_ context.Context, entries ...consumers.Entry) error {
	test.mu.Lock()
	before := test.before
	test.mu.Unlock()
	if err := before(); err != nil {
		return err
	}
	test.mu.Lock()
	defer test.mu.Unlock()
	test.commits++
	for _, e := range entries {
		key := fmt.Sprint(e.Stream, e.Sequence, e.Timestamp.UnixNano())
		if test.known[key] {
			test.repeated++
			continue
		}
		test.known[key] = true
		if e.Unreadable {
			test.unreadable = append(test.unreadable, e)
			continue
		}
		test.stored = append(test.stored, string(e.Content))
	}
	return nil
}

// publish puts the numbers from first up to end into the stream, as the host does.
func (test *leftoversTest) publish(t *testing.T, first, end int) {
	t.Helper()
	for i := first; i < end; i++ {
		data, err := json.Marshal(synctypes.OutputSendToDeviceEvent{
			UserID: "@bob:here", DeviceID: "PHONE",
			SendToDeviceEvent: gomatrixserverlib.SendToDeviceEvent{
				Sender: "@carol:there", Type: "m.test", Content: json.RawMessage(fmt.Sprint(i)),
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = test.js.Publish(test.stream(), data); err != nil {
			t.Fatal(err)
		}
	}
}

// wantStored waits until the numbers up to end are stored, each once and in their order.
func (test *leftoversTest) wantStored(t *testing.T, end int) {
	t.Helper()
	want := make([]string, end)
	for i := range want {
		want[i] = fmt.Sprint(i)
	}
	var got []string
	test.wait(t, func() bool {
		test.mu.Lock()
		defer test.mu.Unlock()
		got = slices.Clone(test.stored)
		return len(got) >= end
	})
	if !slices.Equal(got, want) {
		t.Fatalf("stored were %v, want %v", got, want)
	}
}

// wantDone waits until every entry is acknowledged.
func (test *leftoversTest) wantDone(t *testing.T) {
	t.Helper()
	test.wait(t, func() bool {
		info, err := test.js.ConsumerInfo(test.stream(), test.durable()+"Pull")
		return err == nil && info.NumPending == 0 && info.NumAckPending == 0
	})
}

// wait waits for less than the 30 seconds after which NATS delivers again what was not acknowledged.
func (test *leftoversTest) wait(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			test.mu.Lock()
			defer test.mu.Unlock()
			t.Fatalf("it did not come to it; stored are %v", test.stored)
		}
	}
}

// keep makes another consumer of the stream, as the host's federation sender is, which takes nothing: the
// stream keeps what it has for it.
func (test *leftoversTest) keep(t *testing.T) {
	t.Helper()
	_, err := test.js.AddConsumer(test.stream(), &nats.ConsumerConfig{Durable: "another", AckPolicy: nats.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
}

// unmodified subscribes as the host's own consumer does.
func (test *leftoversTest) unmodified(t *testing.T) *nats.Subscription {
	t.Helper()
	sub, err := test.js.PullSubscribe(test.stream(), test.durable()+"Pull", nats.DeliverAll(), nats.ManualAck())
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func fetchEntries(t *testing.T, sub *nats.Subscription, n int) []*nats.Msg {
	t.Helper()
	msgs, err := sub.Fetch(n, nats.MaxWait(10*time.Second))
	if err != nil || len(msgs) != n {
		t.Fatalf("fetched were %d messages, %v", len(msgs), err)
	}
	return msgs
}

func TestLeftoversAreTakenInOrder(t *testing.T) {
	test := newLeftoversTest(t)
	test.unmodified(t)
	test.publish(t, 0, 3*leftoversAtOnce)
	test.start(t, t.Context())
	test.wantStored(t, 3*leftoversAtOnce)
	if test.commits > leftoversAtOnce {
		t.Errorf("%d entries were stored in %d steps", 3*leftoversAtOnce, test.commits)
	}
	for i := range 5 { // one by one, too
		test.publish(t, 3*leftoversAtOnce+i, 3*leftoversAtOnce+i+1)
		test.wantStored(t, 3*leftoversAtOnce+i+1)
	}
	test.wantDone(t)
	if test.repeated != 0 {
		t.Errorf("%d entries were stored again", test.repeated)
	}
}

// The way back: what an unmodified Dendrite finds is the consumer that it would have made.
func TestHostTakesTheConsumerBack(t *testing.T) {
	test := newLeftoversTest(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := test.start(t, ctx)
	test.publish(t, 0, 3)
	test.wantStored(t, 3)
	test.wantDone(t)
	cancel()
	<-ended

	test.publish(t, 3, 5)
	got := make(chan string, 2)
	err := jetstream.JetStreamConsumer(
		test.process.Context(), test.js, test.stream(), test.durable(), 1,
		func(_ context.Context, msgs []*nats.Msg) bool {
			got <- string(msgs[0].Data)
			return true
		},
		nats.DeliverAll(), nats.ManualAck(),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"content":3`, `"content":4`} {
		if data := <-got; !strings.Contains(data, want) {
			t.Errorf("the host got %s, want %s", data, want)
		}
	}
}

// A process that was killed had taken three entries and acknowledged none: they come before the others, and
// at once.
func TestUnacknowledgedEntriesKeepTheirPlace(t *testing.T) {
	test := newLeftoversTest(t)
	test.publishAfter(t, test.unmodified(t), 10)
	test.start(t, t.Context())
	test.wantStored(t, 10)
	test.wantDone(t)
}

// NATS was about to deliver the third entry again, before the two that went to the same process.
func TestEntriesAboutToComeAgainKeepTheirPlace(t *testing.T) {
	test := newLeftoversTest(t)
	msgs := test.publishAfter(t, test.unmodified(t), 100)
	if err := msgs[2].Nak(nats.AckWait(time.Second)); err != nil {
		t.Fatal(err)
	}
	test.start(t, t.Context())
	test.wantStored(t, 100)
	test.wantDone(t)
}

// publishAfter fetches the first three of n entries through sub.
func (test *leftoversTest) publishAfter(t *testing.T, sub *nats.Subscription, n int) []*nats.Msg {
	t.Helper()
	test.publish(t, 0, 3)
	msgs := fetchEntries(t, sub, 3)
	test.publish(t, 3, n)
	return msgs
}

// An unmodified Dendrite took three entries and acknowledged the second, which the stream still has. The others
// come in their order.
func TestEntriesThatTheHostStoredAreNotStoredAgain(t *testing.T) {
	test := newLeftoversTest(t)
	test.keep(t)
	msgs := test.publishAfter(t, test.unmodified(t), 5)
	if err := msgs[1].AckSync(); err != nil {
		t.Fatal(err)
	}
	test.start(t, t.Context())
	test.wantDone(t)
	test.mu.Lock()
	defer test.mu.Unlock()
	if want := []string{"0", "2", "3", "4"}; !slices.Equal(test.stored, want) {
		t.Errorf("stored were %v, want %v", test.stored, want)
	}
}

// Entries are delivered over another connection, which is lost with them, while the consumer runs.
func TestMissedDeliveriesKeepTheirPlace(t *testing.T) {
	test := newLeftoversTest(t)
	lost := test.unmodified(t)
	test.start(t, t.Context())
	test.publish(t, 0, 1)
	test.wantStored(t, 1)
	fetched := make(chan int)
	go func() {
		msgs, _ := lost.Fetch(3, nats.MaxWait(2*time.Second))
		fetched <- len(msgs)
	}()
	test.wait(t, func() bool {
		info, err := test.js.ConsumerInfo(test.stream(), test.durable()+"Pull")
		return err == nil && info.NumWaiting == 2
	})
	test.publish(t, 1, 20)
	test.wantStored(t, 20)
	if n := <-fetched; n == 0 {
		t.Error("no delivery was missed")
	}
	test.wantDone(t)
	test.wantStored(t, 20)
}

func TestEntriesWaitForTheDatabase(t *testing.T) {
	test := newLeftoversTest(t)
	failures := 3
	test.before = func() error {
		if failures == 0 {
			return nil
		}
		failures--
		return storage.ErrTransient
	}
	test.publishInto(t, 100)
	test.start(t, t.Context())
	test.wantStored(t, 100)
	test.wantDone(t)
	if lines := len(test.log.AllEntries()); lines != 3 || test.repeated != 0 {
		t.Errorf("%d lines were logged, %d entries were stored again", lines, test.repeated)
	}
}

// publishInto makes the consumer first: without one the stream keeps nothing.
func (test *leftoversTest) publishInto(t *testing.T, n int) {
	t.Helper()
	test.unmodified(t)
	test.publish(t, 0, n)
}

func TestConsumerIsMadeAgain(t *testing.T) {
	test := newLeftoversTest(t)
	test.keep(t)
	test.start(t, t.Context())
	test.publish(t, 0, 5)
	test.wantStored(t, 5)
	test.wantDone(t)
	if err := test.js.DeleteConsumer(test.stream(), test.durable()+"Pull"); err != nil {
		t.Fatal(err)
	}
	test.publish(t, 5, 10)
	test.wantStored(t, 10)
	test.wantDone(t)
}

// The module counts and logs what nobody can read.
func TestUnreadableEntryIsPassedOn(t *testing.T) {
	test := newLeftoversTest(t)
	test.unmodified(t)
	test.start(t, t.Context())
	for _, data := range []string{"", "the secret", `{"content":"the secret"`, `["the secret"]`, `{"user_id":["the secret"]}`} {
		if _, err := test.js.Publish(test.stream(), []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	test.publish(t, 0, 1)
	test.wantStored(t, 1)
	test.wantDone(t)
	test.mu.Lock()
	defer test.mu.Unlock()
	if len(test.unreadable) != 5 || len(test.log.AllEntries()) != 0 {
		t.Errorf("%d entries came as unreadable, %d lines were logged", len(test.unreadable), len(test.log.AllEntries()))
	}
	for i, e := range test.unreadable {
		if e.Sequence != uint64(i+1) || strings.Contains(fmt.Sprintf("%+v", e), "secret") {
			t.Errorf("entry %d is %+v", i+1, e)
		}
	}
}

func TestConsumerEndsWithTheModule(t *testing.T) {
	test := newLeftoversTest(t)
	test.before = func() error { return fmt.Errorf("storing: %w", writer.ErrStopped) }
	test.publishInto(t, 1)
	<-test.start(t, t.Context())
	if len(test.log.AllEntries()) != 0 {
		t.Error("a stop was logged")
	}
}

// The process waits for the consumer, which leaves the durable one and what it has not stored.
func TestConsumerEndsWithTheProcess(t *testing.T) {
	test := newLeftoversTest(t)
	d := &Dendrite{config: test.config, log: quietLog()}
	own := process.NewProcessContext()
	if err := d.startLeftovers(own, test.js); err != nil {
		t.Fatal(err)
	}
	own.ShutdownDendrite()
	own.WaitForComponentsToFinish()
	if _, err := test.js.ConsumerInfo(test.stream(), test.durable()+"Pull"); err != nil {
		t.Error(err)
	}

	test.publish(t, 0, 3)
	test.start(t, t.Context())
	test.wantStored(t, 3)
}
