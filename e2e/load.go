package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Load is a number of devices that send to one another while their servers are disturbed. Its
// clients do what real ones do: a request without an answer is repeated, under the same
// transaction ID or with the same since token, once the server answers again.
type Load struct {
	Journal   *Journal
	senders   []*Client
	receivers []*Client
	// onItsWay is how long a message may take after its 200. Within one server it takes no time.
	onItsWay time.Duration
}

// NewLoad registers the devices.
func NewLoad(t testing.TB, s *Server, senders, receivers int) *Load {
	t.Helper()
	l := &Load{Journal: NewJournal()}
	l.add(t, s, senders, receivers)
	return l
}

// NewLoadBetween registers the devices of a load between servers, each with so many of them.
func NewLoadBetween(t testing.TB, devices map[*Server]Devices) *Load {
	t.Helper()
	l := &Load{Journal: NewJournal(), onItsWay: silentRecovery}
	for s, n := range devices {
		l.add(t, s, n.Senders, n.Receivers)
	}
	return l
}

// Devices says how many devices of a server take part in a load.
type Devices struct{ Senders, Receivers int }

func (l *Load) add(t testing.TB, s *Server, senders, receivers int) {
	t.Helper()
	for range senders {
		l.senders = append(l.senders, Register(t, s, "sender"))
	}
	for range receivers {
		l.receivers = append(l.receivers, Register(t, s, "receiver"))
	}
}

// Run sends until disturb returns, waits until all that was promised has arrived or the server
// says that nothing is left, and returns the figures.
func (l *Load) Run(t testing.TB, disturb func()) Figures {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	quit, sent := make(chan struct{}), make(chan struct{})
	var senders, receivers sync.WaitGroup
	for _, c := range l.senders {
		senders.Go(func() { l.send(ctx, t, c, quit) })
	}
	for _, c := range l.receivers {
		receivers.Go(func() { l.receive(ctx, t, c, sent) })
	}
	disturb()
	close(quit)
	senders.Wait()
	close(sent)
	receivers.Wait()
	if err := ctx.Err(); err != nil {
		t.Errorf("the load did not come to its end: %v", err)
	}
	return l.Journal.Check()
}

// Progress waits until the load has sent and received n copies more, over every disturbance so
// far.
func (l *Load) Progress(t testing.TB, n int) {
	t.Helper()
	accepted, arrived := l.Journal.Counts()
	eventually(t, fmt.Sprintf("the load moves on by %d messages", n), func() (bool, any) {
		a, b := l.Journal.Counts()
		return a >= accepted+n && b >= arrived+n, []int{a - accepted, b - arrived}
	})
}

func (l *Load) send(ctx context.Context, t testing.TB, c *Client, quit <-chan struct{}) {
	for seq := 0; ; seq++ {
		select {
		case <-quit:
			return
		default:
		}
		to := l.receivers
		if seq%4 != 0 { // each fourth message goes to all
			to = []*Client{l.receivers[rand.IntN(len(to))]}
		}
		m := journalMessage{Sender: c.UserID.String(), Seq: seq}
		names := make([]string, len(to))
		for i, r := range to {
			names[i] = r.UserID.String()
		}
		l.Journal.Sent(m, names)
		body, txn := To(m, to...).Body(), unique("txn")
		attempts := 0
		for ok := false; !ok; {
			if ctx.Err() != nil {
				return
			}
			attempts++
			a := c.Put(ctx, "m.load", txn, body)
			switch {
			case a.Status == http.StatusOK:
				ok = true
			case a.Err == nil && a.Status < 500:
				t.Errorf("sending under load: %v", a)
				return
			default:
				pause(ctx, c.server)
			}
		}
		l.Journal.Accepted(m, names, attempts)
	}
}

func (l *Load) receive(ctx context.Context, t testing.TB, c *Client, sent <-chan struct{}) {
	name, since := c.UserID.String(), ""
	var patience time.Time
	for ctx.Err() == nil {
		done := false
		select {
		case <-sent:
			if done = true; patience.IsZero() {
				patience = time.Now().Add(l.onItsWay)
			}
		default:
		}
		res, a := c.TrySync(ctx, Sync{Since: since, Timeout: 2 * time.Second})
		switch {
		case res == nil && a.Err == nil && a.Status < 500:
			t.Errorf("/sync under load: %v", a)
			return
		case res == nil:
			pause(ctx, c.server)
			continue
		}
		if err := l.Journal.Arrived(name, res.Events()); err != nil {
			t.Error(err)
			return
		}
		since = res.NextBatch
		// The last /sync began after the last 200 and brought nothing, so that a message which is
		// still missing is lost, and one that comes again would have come.
		if done && len(res.Events()) == 0 && res.Elapsed >= 2*time.Second &&
			(time.Now().After(patience) || l.Journal.Outstanding(name) == 0) {
			return
		}
	}
}

// pause waits until the server answers, as it does at once if it only refused one request.
func pause(ctx context.Context, s *Server) {
	select {
	case <-s.Ready():
	case <-ctx.Done():
	}
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
	}
}
