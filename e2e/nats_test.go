package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// What an unmodified Dendrite left in the stream when it was killed is delivered once and in order, and so is
// what comes after it. What the unmodified Dendrite had taken out is in its own table.
func TestLeftoversOfUnmodifiedDendrite(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		n := StartNATS(t)
		js := n.connect(t)
		s := StartServer(t, b, Options{NATS: n.URL, Unmodified: true})
		bob := Register(t, s, "bob")
		bob.Settle(t, "")
		stop(t, s)
		const left = 2000
		publishNumbered(t, js, bob, 0, left)
		redeliverSoon(t, js)

		s.MustStart(t)
		eventually(t, "the unmodified Dendrite takes some", func() (bool, any) {
			taken := len(hostQueue(t, s, bob))
			return taken >= 20, taken
		})
		kill(t, s)
		taken := hostQueue(t, s, bob)
		if len(taken) == left {
			t.Fatal("the unmodified Dendrite has taken all")
		}

		s = s.withModule(t, Options{NATS: n.URL})
		s.MustStart(t)
		publishNumbered(t, js, bob, left, left+100)
		got, since := collect(t, bob, "", left+99)
		if n := len(taken); len(got) < n || !slices.Equal(got[:n], taken) {
			t.Fatalf("what the unmodified Dendrite had taken does not come first: %v", got)
		}
		// PostgreSQL may have stored one more after the look at what was taken.
		wantAscending(t, slices.Compact(slices.Clone(got[len(taken):])))
		slices.Sort(got)
		// The one that the unmodified Dendrite had stored when it was killed, but not acknowledged, nobody can tell
		// from those that it had not.
		once := slices.Compact(slices.Clone(got))
		if n := len(got) - len(once); n > 1 {
			t.Errorf("%d were delivered twice", n)
		}
		wantNumbers(t, once, 0, left+100)
		wantDrained(t, js)
		bob.Settle(t, since)
	})
}

// The server is killed again and again while it takes entries, the last time together with nats-server.
func TestKilledWhileTakingEntries(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		n := StartNATS(t)
		js := n.connect(t)
		s := StartServer(t, b, Options{NATS: n.URL})
		bob := Register(t, s, "bob")
		since := bob.Settle(t, "")
		stop(t, s)
		redeliverSoon(t, js)
		const each, kills = 1000, 5
		publishNumbered(t, js, bob, 0, each)
		db := s.OpenDatabase(t)
		for i := range kills {
			before := queued(t, db, bob)
			keepRunning(t, s)
			publishNumbered(t, js, bob, each*(i+1), each*(i+2))
			eventually(t, "the server takes some", func() (bool, any) {
				keepRunning(t, s)
				now := queued(t, db, bob)
				return now >= before+50, now
			})
			if i == kills-1 {
				n.Kill(t)
			}
			kill(t, s)
		}
		n.Start(t)
		supervise(t, s)
		got, since := collect(t, bob, since, each*(kills+1)-1)
		wantNumbers(t, got, 0, each*(kills+1))
		wantDrained(t, js)
		bob.Settle(t, since)
	})
}

// nats-server is killed, and stopped, while entries come in. Once it is back the server ends in order with an error, whether the
// module or one of Dendrite's own consumers, which do not outlive that, was the first to notice. It is started again as a supervisor
// would: what nats-server has confirmed is delivered once and in order. While it is away local devices send to one another.
func TestNATSKilledUnderEntries(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		n := StartNATS(t)
		js := n.connect(t)
		s := StartServer(t, b, Options{NATS: n.URL})
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		since := bob.Settle(t, "")
		redeliverSoon(t, js)
		relay := startRelay(t, js, bob)
		disturbances := []func(testing.TB){n.Kill, n.Kill, n.Stop, n.Kill}
		for i, end := range disturbances {
			relay.progress(t, 200)
			end(t)
			alice.Send(t, "m.test", To(object{"n": i}, carol))
			time.Sleep(time.Duration(i) * 500 * time.Millisecond)
			n.Start(t)
			if code, output := s.WaitExit(t); code != 1 || !strings.Contains(output, "msg=Stopping") || !strings.Contains(output, "Dendrite is exiting now") {
				t.Errorf("the server ended with %d:\n%s", code, output)
			}
			supervise(t, s)
		}
		relay.progress(t, 200)
		confirmed := relay.end(t)

		got, since := collect(t, bob, since, confirmed[len(confirmed)-1])
		wantAscending(t, got)
		if lost := missing(confirmed, got); len(lost) > 0 {
			t.Errorf("%d of %d are lost: %v", len(lost), len(confirmed), lost)
		}
		wantDrained(t, js)
		bob.Settle(t, since)
		events, _ := carol.Receive(t, "", len(disturbances))
		wantNumbers(t, numbers(t, events), 0, len(disturbances))
		t.Logf("%d entries confirmed, %d delivered", len(confirmed), len(got))
	})
}

// The same with the host's own NATS: what its streams held when the server was killed is taken out once, whatever
// kills it while it does so.
func TestKilledWhileTakingEntriesOfItsOwnNATS(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Unmodified: true})
		bob := Register(t, s, "bob")
		bob.Settle(t, "")
		stop(t, s)
		const left = 3000
		withStreams(t, s, func(js nats.JetStreamContext) {
			redeliverSoon(t, js)
			publishNumbered(t, js, bob, 0, left)
		})

		s = s.withModule(t, Options{})
		db := s.OpenDatabase(t)
		for range 5 {
			before := taken(t, s, db, bob)
			eventually(t, "the server takes some", func() (bool, any) {
				keepRunning(t, s)
				now := taken(t, s, db, bob)
				return now >= before+200, now
			})
			kill(t, s)
		}
		supervise(t, s)
		got, since := collect(t, bob, "", left-1)
		wantNumbers(t, got, 0, left)
		time.Sleep(2 * soon) // what is not acknowledged comes again
		bob.Settle(t, since)
		stop(t, s)
		withStreams(t, s, func(js nats.JetStreamContext) { wantDrained(t, js) })
	})
}

// Who goes back has an older NATS. It takes what the newer one left in the streams, once and in order, and the newer one what the
// older one left, whether that was stopped or killed.
func TestStreamsAreReadOnTheWayBack(t *testing.T) {
	streamsGoThrough(t, Options{Unmodified: true}, Options{})
}

// The hosts have different versions of NATS.
func TestStreamsAreReadByTheOtherHost(t *testing.T) {
	t.Parallel()
	streamsGoThrough(t, Options{Host: underTest.Other()}, Options{})
}

func TestStreamsAreReadByTheOtherHostUnmodified(t *testing.T) {
	t.Parallel()
	streamsGoThrough(t, Options{Host: underTest.Other(), Unmodified: true}, Options{})
}

// streamsGoThrough has entries wait in the streams of a server for each of the others, which take turns on its data.
func streamsGoThrough(t *testing.T, there, back Options) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		sinceAlice, since := alice.Settle(t, ""), bob.Settle(t, "")
		const each = 200
		for i, o := range []Options{there, back, there, back} {
			if i < 2 || o.Unmodified { // which takes again what NATS did not write down as acknowledged before a kill
				stop(t, s)
			} else {
				kill(t, s)
			}
			withStreams(t, s, func(js nats.JetStreamContext) {
				publishNumbered(t, js, bob, i*each, (i+1)*each)
				publishNumbered(t, js, alice, i, i+1)
			})
			s.SwitchTo(t, o)
			var got []int
			got, since = collect(t, bob, since, (i+1)*each-1)
			wantNumbers(t, got, i*each, (i+1)*each)
			// An unmodified Dendrite that ends before it has acknowledged an entry takes it again. Once a later one is stored, all of
			// bob's are acknowledged.
			_, sinceAlice = collect(t, alice, sinceAlice, i)
		}
	})
}

// taken is queued for a database that may have no tables of the module yet.
func taken(t *testing.T, s *Server, db *sql.DB, c *Client) int {
	t.Helper()
	if !tableExists(t, s, "todevice_messages") {
		return 0
	}
	return queued(t, db, c)
}

// withStreams runs a nats-server on the streams of a server that does not run.
func withStreams(t *testing.T, s *Server, f func(nats.JetStreamContext)) {
	t.Helper()
	n := startNATS(t, s.path("jetstream"))
	f(n.connect(t))
	n.Stop(t)
}

// withModule returns the server on the same data with the module compiled in.
func (s *Server) withModule(t *testing.T, o Options) *Server {
	t.Helper()
	s.binary = binary
	if err := writeJSON(s.path("dendrite.yaml"), s.config(o)); err != nil {
		t.Fatal(err)
	}
	return s
}

// keepRunning starts the server if it does not run, without waiting for it. It ends if it finds the database
// locked by the one that was killed a moment before.
func keepRunning(t *testing.T, s *Server) {
	t.Helper()
	if s.running() {
		return
	}
	if err := s.launch(); err != nil {
		t.Fatal(err)
	}
}

// supervise starts the server until it stays.
func supervise(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, "the server starts", func() (bool, any) {
		err := s.Start()
		return err == nil, err
	})
}

// soon is after what time NATS delivers again what was not acknowledged, instead of 30 seconds.
const soon = 2 * time.Second

func redeliverSoon(t *testing.T, js nats.JetStreamContext) {
	t.Helper()
	info, err := js.ConsumerInfo(natsStream, natsConsumer)
	if err == nil {
		info.Config.AckWait = soon
		_, err = js.UpdateConsumer(natsStream, &info.Config)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hostQueue returns the numbers of the messages that an unmodified Dendrite holds for a device.
func hostQueue(t *testing.T, s *Server, c *Client) []int {
	t.Helper()
	rows, err := s.OpenDatabase(t).Query(
		"SELECT content FROM syncapi_send_to_device WHERE user_id = $1 AND device_id = $2 ORDER BY id",
		c.UserID.String(), c.DeviceID.String(),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck
	var events []Event
	for rows.Next() {
		var data []byte
		var event Event
		if err = rows.Scan(&data); err == nil {
			err = json.Unmarshal(data, &event)
		}
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, event)
	}
	if err = rows.Err(); err != nil {
		t.Fatal(err)
	}
	return numbers(t, events)
}

// collect follows next_batch, over every disturbance, until a number has arrived.
func collect(t *testing.T, c *Client, since string, last int) (got []int, next string) {
	t.Helper()
	within(t, 2*time.Minute, "the last message arrives", func() (bool, any) {
		res, _ := c.TrySync(t.Context(), Sync{Since: since, Timeout: time.Second})
		if res == nil {
			return false, got
		}
		got, since = append(got, numbers(t, res.Events())...), res.NextBatch
		return slices.Contains(got, last), len(got)
	})
	return got, since
}

func wantAscending(t *testing.T, got []int) {
	t.Helper()
	for i := 1; i < len(got); i++ {
		if got[i] <= got[i-1] {
			t.Errorf("%d comes after %d", got[i], got[i-1])
		}
	}
}

func missing(want, got []int) (lost []int) {
	there := make(map[int]bool, len(got))
	for _, n := range got {
		there[n] = true
	}
	for _, n := range want {
		if !there[n] {
			lost = append(lost, n)
		}
	}
	return lost
}

// relay publishes ascending numbers one after the other, over every disturbance.
type relay struct {
	mu        sync.Mutex
	confirmed []int
	cancel    context.CancelFunc
	done      chan struct{}
}

func startRelay(t *testing.T, js nats.JetStreamContext, to *Client) *relay {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &relay{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for n, last := 0, false; !last; n++ {
			ended := ctx.Err() != nil
			if publish(js, "@relayed:remote.example", to, object{"n": n}) != nil {
				continue // the stream may have it all the same: it is not sent again
			}
			r.mu.Lock()
			r.confirmed = append(r.confirmed, n)
			r.mu.Unlock()
			last = ended
		}
	}()
	return r
}

// progress waits for n more confirmations.
func (r *relay) progress(t *testing.T, n int) {
	t.Helper()
	before := r.count()
	eventually(t, "the relay goes on", func() (bool, any) {
		now := r.count()
		return now >= before+n, now - before
	})
}

func (r *relay) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.confirmed)
}

// end returns the numbers that were confirmed, of which the last one is the last that was sent.
func (r *relay) end(t *testing.T) []int {
	t.Helper()
	r.cancel()
	select {
	case <-r.done:
	case <-time.After(deadline):
		t.Fatal("the relay does not come to its end")
	}
	return r.confirmed
}

func kill(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}
