package todevicemodule

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// sample is what a store holds at one moment.
type sample struct {
	at     time.Time
	took   time.Duration
	totals storage.Totals
	// largest are the queues with the most messages, oldest those with the oldest messages of which the age is known.
	largest, oldest []storage.Queue
}

// gauges show the last sample. They have no values before the first one and after one that failed, so that nobody takes
// old values for the present ones.
type gauges struct {
	mu   sync.Mutex
	last *sample   // nil: there is none
	at   time.Time // of the last look with success, or of the start

	queues, messages, oldest, worstSize, worstAge *prometheus.Desc
	edus, bytes, oldestEDU                        *prometheus.Desc
	took, sampledAt                               *prometheus.Desc
}

func newGauges() *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, name), help, labels, nil)
	}
	return &gauges{
		at:        time.Now(),
		queues:    desc("queues", "Devices for which messages wait."),
		messages:  desc("queue_messages", "Messages that wait for their devices."),
		oldest:    desc("oldest_message_age_seconds", "Age of the oldest message that waits for a device; 0 if none does. Queues that begin with an imported message, whose age is not known, are left out."),
		worstSize: desc("largest_queue_messages", "Messages in the largest queues; rank 1 is the largest.", "rank"),
		worstAge:  desc("oldest_queue_age_seconds", "Age of the oldest message in the queues that have waited longest; rank 1 has waited longest.", "rank"),
		edus:      desc("outbox_edus", "EDUs for other servers: waiting, refused for now, or set aside after the last refusal.", "state"),
		bytes:     desc("outbox_bytes", "Size of the EDUs that wait for other servers."),
		oldestEDU: desc("outbox_oldest_age_seconds", "Age of the oldest EDU that waits for another server; 0 if none does."),
		took:      desc("sample_duration_seconds", "How long it took to look at what is stored."),
		sampledAt: desc("last_sample_timestamp_seconds", "When what is stored was last looked at with success; before that, when the server started."),
	}
}

func (g *gauges) set(s sample) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last, g.at = &s, s.at
}

func (g *gauges) clear() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = nil
}

// Describe is part of prometheus.Collector.
func (g *gauges) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		g.queues, g.messages, g.oldest, g.worstSize, g.worstAge, g.edus, g.bytes, g.oldestEDU, g.took, g.sampledAt,
	} {
		to <- desc
	}
}

// Collect is part of prometheus.Collector.
func (g *gauges) Collect(to chan<- prometheus.Metric) {
	g.mu.Lock()
	s, at := g.last, g.at
	g.mu.Unlock()
	show := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	show(g.sampledAt, float64(at.UnixMilli())/1000)
	if s == nil {
		return
	}
	show(g.took, s.took.Seconds())
	show(g.queues, float64(s.totals.Queues))
	show(g.messages, float64(s.totals.Messages))
	for i, q := range s.largest {
		show(g.worstSize, float64(q.Messages), strconv.Itoa(i+1))
	}
	oldest := types.Position(0)
	for i, q := range s.oldest {
		show(g.worstAge, s.age(q.Oldest), strconv.Itoa(i+1))
		if i == 0 {
			oldest = q.Oldest
		}
	}
	show(g.oldest, s.age(oldest))
	show(g.edus, float64(s.totals.Outbox.Waiting), "waiting")
	show(g.edus, float64(s.totals.Outbox.Refused), "refused")
	show(g.edus, float64(s.totals.Outbox.SetAside), "set_aside")
	show(g.bytes, float64(s.totals.Outbox.Bytes))
	show(g.oldestEDU, s.age(s.totals.Outbox.Oldest))
}

// age returns how many seconds before the sample the module allotted a position; zero for none.
func (s *sample) age(position types.Position) float64 {
	if position == 0 {
		return 0
	}
	return max(0, s.at.Sub(position.Time()).Seconds())
}
