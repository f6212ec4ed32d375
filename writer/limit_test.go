package writer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// load is a number of requests, each for so many devices, that so many clients send at once. Every message is acknowledged
// once it is stored.
type load struct {
	name                       string
	clients, requests, devices int
}

func (l load) rows() int { return l.requests * l.devices }

// request is number n of the load: a message of 800 bytes and its transaction.
func (l load) request(round, n int) writer.Submission {
	part := writer.Part{
		Sender: "@alice:example.org", Type: "m.room.encrypted", Remember: 24 * time.Hour,
		Transaction: types.TransactionKey{
			Device:    types.Device{UserID: "@alice:example.org", DeviceID: "PHONE"},
			EventType: "m.room.encrypted", TransactionID: fmt.Sprintf("m%d.%d", round, n),
		},
	}
	content := []byte(`{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":"` + strings.Repeat("Ab+/", 185) + `"}`)
	for i := range l.devices {
		device := n*l.devices + i
		part.Copies = append(part.Copies, storage.Copy{
			Device:  types.Device{UserID: fmt.Sprintf("@user%d:example.org", device/3%1000), DeviceID: fmt.Sprint("DEVICE", device%3)},
			Content: content,
		})
	}
	return writer.Submission{Parts: []writer.Part{part}}
}

func (l load) all(round int) (submissions []writer.Submission) {
	for n := range l.requests {
		submissions = append(submissions, l.request(round, n))
	}
	return submissions
}

// submit has the clients submit by turns.
func (l load) submit(b *testing.B, submissions []writer.Submission, w *writer.Writer) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range l.clients {
		group.Go(func() {
			for n := int(next.Add(1)); n <= l.requests; n = int(next.Add(1)) {
				if err := w.Submit(b.Context(), submissions[n-1]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	group.Wait()
}

// BenchmarkLimit measures the writer and its acknowledger beside the plainest batched SQL on the same server, by turns: the
// same messages and transaction records inserted by INSERTs of many rows, in as many commits as the writer made, one after the
// other, and the messages deleted by their keys, in as many commits as the acknowledger made, beside the insertions where the
// database lets two write at once. The tables, the driver and the settings are the same; but for the primary keys the plain
// tables have no index. ratio is the median of the rounds.
func BenchmarkLimit(b *testing.B) {
	for name, database := range map[string]func(testing.TB) testdb.Open{"postgres": testdb.Postgres, "sqlite": testdb.SQLite} {
		for _, l := range []load{
			{"1000-devices", 2, 20, 1000},
			{"20-devices", 8, 400, 20},
			{"1-device", 64, 8000, 1},
		} {
			b.Run(name+"/"+l.name, func(b *testing.B) { besidePlain(b, database(b), l, name == "sqlite") })
		}
	}
}

func besidePlain(b *testing.B, open testdb.Open, l load, exclusive bool) {
	m := newMeasured(b, open)
	plain := newPlainTables(b, open(b), exclusive)
	var rates, limits, ratios []float64
	for round := 0; b.Loop(); round++ {
		used := m.run(b, l, round)
		limit := plain.run(b, l, round, m.commits, m.deletions)
		rates = append(rates, float64(l.rows())/used.Seconds())
		limits = append(limits, float64(l.rows())/limit.Seconds())
		ratios = append(ratios, limit.Seconds()/used.Seconds())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(l.rows())/float64(m.commits), "rows/commit")
	b.ReportMetric(median(rates), "writer-rows/s")
	b.ReportMetric(median(limits), "plain-rows/s")
	b.ReportMetric(median(ratios), "ratio")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// measured is the writer with its acknowledger, as the module runs them.
type measured struct {
	writer       *writer.Writer
	acknowledger *writer.Acknowledger
	store        *countingStore
	committed    atomic.Int64
	commits      int // of the last round
	deletions    int
}

// countingStore counts the deletions.
type countingStore struct {
	storage.Store
	deletions atomic.Int64
}

func (s *countingStore) Acknowledge(ctx context.Context, all []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	acknowledged, err := s.Store.Acknowledge(ctx, all, limit)
	if len(acknowledged) > 0 {
		s.deletions.Add(1)
	}
	return acknowledged, err
}

func newMeasured(b *testing.B, open testdb.Open) *measured {
	ctx := context.Background()
	m := &measured{store: &countingStore{Store: open(b)}}
	if err := m.store.Migrate(ctx); err != nil {
		b.Fatal(err)
	}
	m.acknowledger = writer.NewAcknowledger(m.store, quiet())
	m.writer = writer.New(writer.Options{
		Store: m.store, Log: quiet(),
		Wake: func(through types.Position, devices []writer.Wakeup) {
			for _, user := range devices {
				for _, id := range user.DeviceIDs {
					m.acknowledger.Acknowledge(types.Device{UserID: user.UserID, DeviceID: id}, through)
				}
			}
		},
		Observe: func(writer.Commit) { m.committed.Add(1) },
	})
	if err := m.writer.Start(ctx); err != nil {
		b.Fatal(err)
	}
	m.acknowledger.Start(ctx)
	b.Cleanup(func() {
		m.acknowledger.Stop(ctx)
		if err := m.writer.Stop(ctx); err != nil {
			b.Error(err)
		}
	})
	return m
}

// run returns the time until all messages of a round are stored and deleted again.
func (m *measured) run(b *testing.B, l load, round int) time.Duration {
	m.committed.Store(0)
	m.store.deletions.Store(0)
	submissions := l.all(round)
	started := time.Now()
	l.submit(b, submissions, m.writer)
	for m.acknowledger.Pending() > 0 {
		time.Sleep(time.Millisecond)
	}
	used := time.Since(started)
	m.commits, m.deletions = int(m.committed.Load()), int(m.store.deletions.Load())
	return used
}
