package streams_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var bob = types.Device{UserID: "@bob:x", DeviceID: "PHONE"}

// queue is a store with the one queue of bob. Its other methods are never called.
type queue struct {
	storage.Store
	messages []types.Message
	reads    int
	fails    func(read int) error
}

func (q *queue) Messages(_ context.Context, device types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error) {
	q.reads++
	if q.fails != nil {
		if err := q.fails(q.reads); err != nil {
			return nil, err
		}
	}
	var found []types.Message
	for _, m := range q.messages {
		if device == bob && m.Position > after && m.Position <= through && len(found) < limit && !slices.Contains(except, m.Sender) {
			found = append(found, m)
		}
	}
	return found, nil
}

// acknowledgements keeps what is said to it.
type acknowledgements map[types.Device]types.Position

func (a acknowledgements) Acknowledge(device types.Device, through types.Position) {
	a[device] = through
}
func (a acknowledgements) Acknowledged(device types.Device) types.Position { return a[device] }

const (
	published = types.Position(100)
	limit     = 3
)

// newReader returns a reader of a queue with messages from @alice:x at the positions, of which
// those above 100 can't be seen yet.
func newReader(positions ...types.Position) (*streams.Reader, *queue, acknowledgements) {
	q, a := &queue{}, acknowledgements{}
	for _, position := range positions {
		q.messages = append(q.messages, types.Message{Position: position, Sender: "@alice:x"})
	}
	return &streams.Reader{
		Store: q, Acknowledgements: a, Published: func() types.Position { return published }, Limit: limit,
	}, q, a
}

func nobody(context.Context) ([]string, error) { return nil, nil }

func wantRead(t *testing.T, r *streams.Reader, after, through, wantNext types.Position, ignored streams.IgnoredSenders, want ...types.Position) {
	t.Helper()
	messages, next, err := r.Read(t.Context(), bob, after, through, ignored)
	if err != nil {
		t.Fatal(err)
	}
	var got []types.Position
	for _, m := range messages {
		got = append(got, m.Position)
	}
	if !slices.Equal(got, want) || next != wantNext {
		t.Errorf("reading after %d through %d brought %v and next %d, want %v and %d", after, through, got, next, want, wantNext)
	}
}

func TestRead(t *testing.T) {
	tests := []struct {
		name                 string
		queue                []types.Position
		after, through, next types.Position
		want                 []types.Position
	}{
		{"empty queue", nil, 0, 100, 100, nil},
		{"fewer than the limit", []types.Position{10, 20}, 0, 100, 100, []types.Position{10, 20}},
		{"as many as the limit", []types.Position{10, 20, 30}, 0, 100, 30, []types.Position{10, 20, 30}},
		{"more than the limit", []types.Position{10, 20, 30, 40}, 0, 100, 30, []types.Position{10, 20, 30}},
		{"the rest", []types.Position{10, 20, 30, 40}, 30, 100, 100, []types.Position{40}},
		{"after is exclusive, through inclusive", []types.Position{10, 20, 30}, 10, 20, 20, []types.Position{20}},
		{"limited by through", []types.Position{10, 20, 30, 40}, 0, 20, 20, []types.Position{10, 20}},
		{"not yet visible", []types.Position{10, 101}, 0, 200, 100, []types.Position{10}},
		{"after is through", []types.Position{10, 20}, 10, 10, 10, nil},
		{"after is ahead of through", []types.Position{10, 20}, 20, 10, 20, nil},
		{"after is ahead of everything", []types.Position{10, 20}, 300, 300, 300, nil},
		{"before all", []types.Position{10, 20}, streams.BeforeAll, 100, 100, []types.Position{10, 20}},
		{"before all, up to nothing", []types.Position{10}, streams.BeforeAll, 0, 0, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, _, _ := newReader(test.queue...)
			for range 2 { // the same since gives the same batch
				wantRead(t, r, test.after, test.through, test.next, nobody, test.want...)
			}
		})
	}
}

// What is too large for one read is left to the next, but a single message never is; the token covers what was read alone.
func TestReadIsBoundedInBytes(t *testing.T) {
	r, q, _ := newReader(10, 20, 30, 40, 50, 60)
	for i, size := range []int{50, 50, 1, 500, 100, 1} {
		q.messages[i].Content = make([]byte, size)
	}
	r.Limit, r.Bytes = 5, 100
	for range 2 {
		wantRead(t, r, 0, 100, 20, nobody, 10, 20)
		wantRead(t, r, 20, 100, 30, nobody, 30)
		wantRead(t, r, 30, 100, 40, nobody, 40)
		wantRead(t, r, 40, 100, 50, nobody, 50)
		wantRead(t, r, 50, 100, 100, nobody, 60)
		wantRead(t, r, 0, 15, 15, nobody, 10)
	}
	r.Bytes = 0
	wantRead(t, r, 0, 100, 50, nobody, 10, 20, 30, 40, 50)
}

func TestChainOfReadsBringsEachMessageOnce(t *testing.T) {
	var all []types.Position
	for i := range types.Position(3*limit + 1) {
		all = append(all, 5+7*i)
	}
	r, _, _ := newReader(all...)
	var got []types.Position
	for since, reads := types.Position(0), 0; since < published; reads++ {
		messages, next, err := r.Read(t.Context(), bob, since, published, nobody)
		if err != nil || len(messages) > limit || next <= since || reads > len(all) {
			t.Fatalf("after %d came %d messages, next %d and error %v", since, len(messages), next, err)
		}
		for _, m := range messages {
			got = append(got, m.Position)
		}
		since = next
	}
	if !slices.Equal(got, all) {
		t.Errorf("the chain brought %v, want %v", got, all)
	}
}

func TestNothingToReadSparesTheStore(t *testing.T) {
	r, q, a := newReader(10, 20)
	wantRead(t, r, 50, 50, 50, nobody)
	a[bob] = 100
	wantRead(t, r, 0, 100, 100, nobody)
	if q.reads != 0 {
		t.Errorf("the store was asked %d times", q.reads)
	}
}

func TestDeviceThatCannotHaveAQueue(t *testing.T) {
	r, q, a := newReader(10)
	device := types.Device{UserID: "@bob:x", DeviceID: "a\x00b"}
	messages, next, err := r.Read(t.Context(), device, 0, 100, nobody)
	if err != nil || len(messages) != 0 || next != 100 || q.reads != 0 {
		t.Errorf("%d messages, next %d, error %v after %d reads", len(messages), next, err, q.reads)
	}
	r.Acknowledge(device, 50)
	if len(a) != 0 {
		t.Errorf("%v was acknowledged", a)
	}
}

func TestAcknowledgedMessagesAreHidden(t *testing.T) {
	r, _, a := newReader(10, 20, 30)
	a[bob] = 20
	wantRead(t, r, 0, 100, 100, nobody, 30)
	wantRead(t, r, streams.BeforeAll, 100, 100, nobody, 30)
	wantRead(t, r, 25, 100, 100, nobody, 30)
	wantRead(t, r, 0, 15, 15, nobody)
}

func TestIgnoredSenders(t *testing.T) {
	ignore := func(senders ...string) streams.IgnoredSenders {
		return func(context.Context) ([]string, error) { return senders, nil }
	}
	mixed := func() *streams.Reader {
		r, q, _ := newReader(10, 20, 30, 40, 50)
		q.messages[1].Sender, q.messages[2].Sender, q.messages[3].Sender = "@eve:x", "@mallory:x", "@bob:x"
		return r
	}
	// Those that are passed over make room for what stands behind them.
	wantRead(t, mixed(), 0, 100, 50, ignore("@eve:x", "@mallory:x"), 10, 40, 50)
	wantRead(t, mixed(), 0, 100, 40, ignore("@eve:x"), 10, 30, 40)
	wantRead(t, mixed(), 0, 100, 30, ignore("@carol:x"), 10, 20, 30)
	wantRead(t, mixed(), 0, 100, 30, nil, 10, 20, 30)
	// What ends with ignored messages moves past them.
	wantRead(t, mixed(), 0, 30, 30, ignore("@eve:x", "@mallory:x"), 10)
	wantRead(t, mixed(), 10, 30, 30, ignore("@eve:x", "@mallory:x"))
	// The receiver's own devices are never ignored.
	wantRead(t, mixed(), 30, 100, 100, ignore("@bob:x"), 40, 50)
	wantRead(t, mixed(), 0, 100, 50, ignore("@bob:x", "@eve:x", "@mallory:x"), 10, 40, 50)
}

func TestIgnoredSendersAreAskedForOnceAndOnlyIfMessagesWait(t *testing.T) {
	asked := 0
	ignored := func(context.Context) ([]string, error) {
		asked++
		return []string{"@alice:x"}, nil
	}
	r, _, _ := newReader(10, 20)
	wantRead(t, r, 50, 100, 100, ignored)
	wantRead(t, r, 100, 100, 100, ignored)
	if asked != 0 {
		t.Errorf("asked %d times although no message waits", asked)
	}
	wantRead(t, r, 0, 100, 100, ignored)
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
}

func TestFailedReadIsNoEmptyQueue(t *testing.T) {
	away := errors.New("the database is away")
	failing := func(context.Context) ([]string, error) { return nil, away }
	ignoring := func(context.Context) ([]string, error) { return []string{"@alice:x"}, nil }
	check := func(name string, r *streams.Reader, ignored streams.IgnoredSenders) {
		messages, next, err := r.Read(t.Context(), bob, 7, 100, ignored)
		if !errors.Is(err, away) || len(messages) != 0 || next != 7 {
			t.Errorf("%s: %d messages, next %d, error %v", name, len(messages), next, err)
		}
	}
	for read := range 2 {
		r, q, _ := newReader(10, 20)
		q.fails = func(n int) error {
			if n == read+1 {
				return away
			}
			return nil
		}
		check(fmt.Sprintf("read %d", read+1), r, ignoring)
	}
	r, _, _ := newReader(10, 20)
	check("the ignored senders", r, failing)
}

func TestSince(t *testing.T) {
	r, _, _ := newReader()
	for position, want := range map[types.Position]types.Position{
		0: 0, 1: 1, 99: 99, 100: 100,
		101: streams.BeforeAll, math.MaxInt64: streams.BeforeAll,
		-1: streams.BeforeAll, math.MinInt64: streams.BeforeAll, streams.BeforeAll: streams.BeforeAll,
	} {
		if got := r.Since(position); got != want {
			t.Errorf("Since(%d) is %d, want %d", position, got, want)
		}
	}
}

func TestTokenFromTheFutureHidesNothing(t *testing.T) {
	r, _, a := newReader(10, 20)
	since := r.Since(5000)
	r.Acknowledge(bob, since)
	if len(a) != 0 {
		t.Errorf("%v was acknowledged", a)
	}
	wantRead(t, r, since, 100, 100, nobody, 10, 20)
}

func TestAcknowledge(t *testing.T) {
	for position, counts := range map[types.Position]bool{
		1: true, 99: true, 100: true,
		0: false, -1: false, math.MinInt64: false, streams.BeforeAll: false, 101: false, math.MaxInt64: false,
	} {
		r, _, a := newReader()
		r.Acknowledge(bob, position)
		if got, ok := a[bob]; ok != counts || ok && got != position {
			t.Errorf("acknowledging %d acknowledged %v", position, a)
		}
	}
}
