package e2e

import (
	"context"
	"net/http"
	"testing"
	"time"
)

// What is promised for messages to another server: how soon they arrive after its first request to us,
// and how soon if it comes back without a word.
const (
	contactRecovery = 5 * time.Second
	silentRecovery  = time.Minute
)

// Send sends the messages first to end-1, each in a request of its own. As a client does, it repeats what
// had no answer.
func (j *Journal) Send(ctx context.Context, t testing.TB, from *Client, first, end int, to ...*Client) {
	t.Helper()
	receivers := make([]string, len(to))
	for i, c := range to {
		receivers[i] = c.UserID.String()
	}
	for n := first; n < end; n++ {
		m := journalMessage{Sender: from.UserID.String(), Seq: n}
		body, txn := To(m, to...).Body(), unique("txn")
		for attempts := 1; ; attempts++ {
			a := from.Put(ctx, "m.load", txn, body)
			if a.Status == http.StatusOK {
				j.Accepted(m, receivers, attempts)
				break
			}
			if ctx.Err() != nil || a.Err == nil && a.Status < 500 {
				t.Errorf("sending message %d: %v", n, a)
				return
			}
			pause(ctx, from.server)
		}
	}
}

// Collect follows a device's next_batch until all that was promised to it has arrived, for as long as
// was promised, and then once more, for what comes twice.
func (j *Journal) Collect(t testing.TB, to *Client, since string, promised time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), promised)
	defer cancel()
	name := to.UserID.String()
	sync := func(ctx context.Context, timeout time.Duration) {
		res, _ := to.TrySync(ctx, Sync{Since: since, Timeout: timeout})
		if res == nil {
			pause(ctx, to.server)
			return
		}
		if err := j.Arrived(name, res.Events()); err != nil {
			t.Error(err)
		}
		since = res.NextBatch
	}
	for ctx.Err() == nil && j.Outstanding(name) > 0 {
		sync(ctx, time.Second)
	}
	sync(t.Context(), shortPoll)
}

// WantGood fails the test unless every promise was kept.
func (j *Journal) WantGood(t testing.TB, after string) {
	t.Helper()
	figures := j.Check()
	t.Logf("%s: %s", after, figures)
	if !figures.Good() {
		t.Errorf("%s: %s", after, figures)
	}
}
