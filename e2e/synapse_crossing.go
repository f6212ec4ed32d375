package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Crossing is a stream of numbered messages from one device to two devices of a user of another server:
// most to the first device, each third one to all. Its clients do what real ones do while servers are
// stopped and killed.
type Crossing struct {
	Journal *Journal
	// Repeats says that a request without an answer is repeated under its transaction ID, until it
	// has one. Synapse forgets transaction IDs when it ends, so that there it is given up: its message
	// may arrive or not.
	Repeats bool

	from    *Client
	devices []*Client
	next    int
	givenUp int // copies
}

const (
	// crossingPace is between two messages. Without it two Synapses and what sends to them are busy with
	// the backlog alone.
	crossingPace = 15 * time.Millisecond
	// crossingWindow is how many copies may be on their way. It keeps a stopped server's backlog within
	// what the other one takes in a few seconds.
	crossingWindow = 200
)

// NewCrossing registers the users.
func NewCrossing(t testing.TB, from, to *Server) *Crossing {
	t.Helper()
	receiver := Register(t, to, "receiver")
	return &Crossing{
		Journal: NewJournal(),
		Repeats: from.Backend != synapse,
		from:    Register(t, from, "sender"),
		devices: []*Client{receiver, receiver.Login(t, to, "SECOND")},
	}
}

// runCrossings sends over all crossings until disturb returns, waits until all that was promised has
// arrived, and fails the test if anything was lost, doubled or out of order.
func runCrossings(t testing.TB, disturb func(), crossings ...*Crossing) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	quit := make(chan struct{})
	var senders, receivers sync.WaitGroup
	for _, c := range crossings {
		senders.Go(func() {
			for open(quit) && c.send(ctx, t, false) && sleep(ctx, crossingPace) {
			}
		})
		for _, d := range c.devices {
			receivers.Go(func() { c.receive(ctx, t, d) })
		}
	}
	defer receivers.Wait()
	defer cancel()
	disturb()
	close(quit)
	senders.Wait()
	for _, c := range crossings {
		c.waitForAll(t)
	}
	// A message goes out only when the other server has taken those before it, which it has then taken for
	// the last time.
	for _, c := range crossings {
		c.send(ctx, t, true)
		c.waitForAll(t)
		f := c.Journal.Check()
		t.Logf("from the %s server: %s", c.from.server.Backend, f)
		if f.Unpromised -= c.givenUp; f.Lost+f.Doubled+f.Reordered > 0 || f.Unpromised > 0 {
			t.Errorf("from the %s server, %d copies given up: %s", c.from.server.Backend, c.givenUp, f)
		}
	}
}

func open(quit <-chan struct{}) bool {
	select {
	case <-quit:
		return false
	default:
		return true
	}
}

// Progress waits until n copies more have been sent and have arrived.
func (c *Crossing) Progress(t testing.TB, n int) {
	t.Helper()
	accepted, arrived := c.Journal.Counts()
	within(t, silentRecovery, fmt.Sprintf("%d copies more from the %s server arrive", n, c.from.server.Backend), func() (bool, any) {
		a, b := c.Journal.Counts()
		return a >= accepted+n && b >= arrived+n, []int{a - accepted, b - arrived}
	})
}

func (c *Crossing) waitForAll(t testing.TB) {
	t.Helper()
	within(t, silentRecovery, fmt.Sprintf("all from the %s server arrive", c.from.server.Backend), func() (bool, any) {
		f := c.Journal.Check()
		return f.Lost == 0, f
	})
}

// send sends the next message, and tells whether the stream goes on.
func (c *Crossing) send(ctx context.Context, t testing.TB, toAll bool) bool {
	for {
		if accepted, arrived := c.Journal.Counts(); accepted-arrived <= crossingWindow {
			break
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return false
		}
	}
	m := journalMessage{Sender: c.from.UserID.String(), Seq: c.next}
	receivers, messages := c.devices[:1], To(m, c.devices[0])
	if toAll || c.next%3 == 2 {
		receivers, messages = c.devices, Messages{c.devices[0].UserID: {"*": m}}
	}
	c.next++
	txn := unique("txn")
	for attempts := 1; ; attempts++ {
		a := c.from.Put(ctx, "m.crossing", txn, messages.Body())
		switch {
		case ctx.Err() != nil:
			return false
		case a.Status == http.StatusOK:
			names := make([]string, len(receivers))
			for i, d := range receivers {
				names[i] = d.name()
			}
			c.Journal.Accepted(m, names, attempts)
			return true
		case a.Err == nil && a.Status < 500:
			t.Errorf("sending over a crossing: %v", a)
			return false
		}
		if pause(ctx, c.from.server); ctx.Err() != nil {
			return false
		}
		if !c.Repeats {
			c.givenUp += len(receivers)
			return true
		}
	}
}

func (c *Crossing) receive(ctx context.Context, t testing.TB, d *Client) {
	for since := ""; ctx.Err() == nil; {
		res, a := d.TrySync(ctx, Sync{Since: since, Timeout: 2 * time.Second})
		switch {
		case ctx.Err() != nil:
			return
		case res == nil && a.Err == nil && a.Status < 500:
			t.Errorf("/sync over a crossing: %v", a)
			return
		case res == nil:
			pause(ctx, d.server)
			continue
		}
		if err := c.Journal.Arrived(d.name(), res.Events()); err != nil {
			t.Error(err)
			return
		}
		since = res.NextBatch
	}
}

func (c *Client) name() string { return c.UserID.String() + " " + c.DeviceID.String() }

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
