package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	benchPairs   = 8                // senders here, each with a receiver there
	benchFor     = 15 * time.Second // how long each load lasts
	benchOffered = 40               // messages a second of the load that measures the delay: unmodified Dendrite carries it
	benchContent = 800              // bytes
)

// BenchmarkFederation sends from one server to another: first as much as goes, each sender one message after
// the other, then at a rate that either kind of server carries. It prints a table of two servers with the module beside
// two unmodified ones, of the same configuration. One run is a measurement: use -benchtime 1x.
func BenchmarkFederation(b *testing.B) {
	var table strings.Builder
	fmt.Fprintf(&table, "%-28s %12s %12s %12s %12s\n", "", "messages/s", "median delay", "p99 delay", "wrong")
	for _, backend := range []Backend{Postgres, SQLite} {
		var rates []float64
		for _, unmodified := range []bool{true, false} {
			kind := map[bool]string{true: "unmodified", false: "module"}[unmodified]
			b.Run(fmt.Sprintf("%s/%s", backend, kind), func(b *testing.B) {
				here, there := StartPair(b, backend, Options{Unmodified: unmodified}, Options{Unmodified: unmodified})
				for range b.N {
					full := newCrossing(b, here, there).run(b, 0)
					steady := newCrossing(b, here, there).run(b, benchOffered)
					b.ReportMetric(full.rate, "messages/s")
					b.ReportMetric(steady.percentile(50).Seconds()*1000, "ms-median")
					rates = append(rates, full.rate)
					fmt.Fprintf(&table, "%-28s %12.0f %12s %12s %12d\n", fmt.Sprintf("two %s, %s", kind, backend), full.rate,
						steady.percentile(50).Round(100*time.Microsecond), steady.percentile(99).Round(100*time.Microsecond),
						full.wrong+steady.wrong)
				}
			})
		}
		if len(rates) > 1 {
			fmt.Fprintf(&table, "%-28s %11.1fx\n", "ratio, "+string(backend), rates[len(rates)-1]/rates[0])
		}
	}
	fmt.Printf("%d senders with a receiver each, %d bytes; the delay at %d messages/s, from the 200 to the /sync response\n%s",
		benchPairs, benchContent, benchOffered, table.String())
}

// crossing is a load of messages from one server to another.
type crossing struct {
	journal   *Journal
	senders   []*Client
	receivers []*Client

	mu      sync.Mutex
	sentAt  map[journalMessage]time.Time
	delays  []time.Duration
	arrived time.Time
}

type crossed struct {
	rate   float64 // messages a second
	delays []time.Duration
	wrong  int // lost, doubled or out of order
}

func (c crossed) percentile(p int) time.Duration {
	if len(c.delays) == 0 {
		return 0
	}
	return c.delays[(len(c.delays)-1)*p/100]
}

func newCrossing(b *testing.B, here, there *Server) *crossing {
	b.Helper()
	c := &crossing{journal: NewJournal(), sentAt: map[journalMessage]time.Time{}}
	for range benchPairs {
		c.senders = append(c.senders, Register(b, here, "sender"))
		c.receivers = append(c.receivers, Register(b, there, "receiver"))
	}
	return c
}

// run sends for benchFor, at a rate of all senders together or, if that is 0, as fast as it goes, and waits
// until everything has arrived.
func (c *crossing) run(b *testing.B, rate int) crossed {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	var senders, receivers sync.WaitGroup
	sent := make(chan struct{})
	for _, r := range c.receivers {
		receivers.Go(func() { c.receive(ctx, b, r, sent) })
	}
	start := time.Now()
	for i, s := range c.senders {
		senders.Go(func() { c.send(ctx, b, s, c.receivers[i], start.Add(benchFor), rate) })
	}
	senders.Wait()
	close(sent)
	receivers.Wait()
	figures := c.journal.Check()
	slices.Sort(c.delays)
	if !figures.Good() {
		b.Logf("%s", figures)
	}
	return crossed{
		rate:   float64(figures.Arrived-figures.Doubled) / c.arrived.Sub(start).Seconds(),
		delays: c.delays,
		wrong:  figures.Lost + figures.Doubled + figures.Reordered + figures.Unpromised,
	}
}

func (c *crossing) send(ctx context.Context, b *testing.B, from, to *Client, until time.Time, rate int) {
	pad := strings.Repeat("x", benchContent)
	next := time.Now()
	for seq := 0; time.Now().Before(until) && ctx.Err() == nil; seq++ {
		if rate > 0 {
			next = next.Add(time.Duration(benchPairs) * time.Second / time.Duration(rate))
			time.Sleep(time.Until(next))
		}
		m := journalMessage{Sender: from.UserID.String(), Seq: seq}
		content := object{"sender": m.Sender, "seq": m.Seq, "pad": pad}
		if a := from.Put(ctx, "m.bench", unique("txn"), To(content, to).Body()); a.Status != 200 {
			b.Errorf("sending: %v", a)
			return
		}
		now := time.Now()
		c.mu.Lock()
		c.sentAt[m] = now
		c.mu.Unlock()
		c.journal.Accepted(m, []string{to.UserID.String()}, 1)
	}
}

func (c *crossing) receive(ctx context.Context, b *testing.B, to *Client, sent <-chan struct{}) {
	name, since := to.UserID.String(), ""
	for ctx.Err() == nil {
		res, a := to.TrySync(ctx, Sync{Since: since, Timeout: time.Second})
		if res == nil {
			b.Errorf("receiving: %v", a)
			return
		}
		since = res.NextBatch
		events := res.Events()
		if err := c.journal.Arrived(name, events); err != nil {
			b.Error(err)
		}
		c.note(events, res.Received)
		if len(events) > 0 {
			continue
		}
		select {
		case <-sent:
			if c.journal.Outstanding(name) == 0 {
				return
			}
		default:
		}
	}
}

// note records how long messages took from the answer to their sender. One that arrived before that took no time.
func (c *crossing) note(events []Event, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range events {
		var m journalMessage
		if json.Unmarshal(e.Content, &m) != nil {
			continue
		}
		if sent, ok := c.sentAt[m]; ok {
			c.delays = append(c.delays, max(0, at.Sub(sent)))
		} else {
			c.delays = append(c.delays, 0)
		}
		c.arrived = at
	}
}
