package todevicemodule

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

const metricsNamespace, metricsSubsystem = "dendrite", "todevice"

// otherLabel stands for every value that a label is not known to have, so that no label grows without bounds.
const otherLabel = "other"

// The values of the labels. Each is there from the start, at zero: a rate counts from the first event on.
var (
	requestCodes      = []string{"200", "400", "413", "500", "503"}
	databaseUses      = []string{failedCommit, failedRead, failedSample}
	acceptedSources   = []string{fromClient, fromFederation}
	inboundResults    = []string{inboundStored, inboundLimited, inboundFailed}
	cacheResults      = []string{cacheHit, cacheMiss}
	sentOutcomes      = []string{string(outbox.Sent), string(outbox.Refused), string(outbox.SetAside)}
	keyRequestResults = []string{consumers.DeviceChecked, consumers.DeviceCheckFailed, consumers.DeviceNotChecked}
	receivedOutcomes  = []string{
		consumers.EDUApplied, consumers.EDUSpoofed, consumers.EDUWithoutMessageID, consumers.EDUMalformed, consumers.EDUTooLarge,
		consumers.EDUTooManyRecipients, consumers.EDUKeyRequestRate, consumers.EDURefused,
	}
	dropReasons = []string{
		string(trace.UnknownDevice), string(trace.InvalidUser), string(trace.NotFederating), string(trace.DeviceDeleted),
		string(trace.Purged), string(trace.Discarded), string(trace.QueueFull), string(trace.TooOld), string(trace.KeyRequestRate),
		string(trace.Malformed), string(trace.DatabaseRefuses),
	}
)

const (
	fromClient     = "client"
	fromFederation = "federation"

	failedCommit = "commit"
	failedRead   = "read"
	failedSample = "sample"

	inboundStored  = "stored"
	inboundLimited = "limited"
	inboundFailed  = "failed"

	cacheHit  = "hit"
	cacheMiss = "miss"
)

// delayBuckets reach from a /sync that waits to a device that comes back after a week.
var delayBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400, 604800}

// metrics are what the module tells of itself. They are made for each module and registered
// where its host says.
type metrics struct {
	requests     labelled
	accepted     labelled
	repeated     prometheus.Counter
	stored       prometheus.Counter
	failed       prometheus.Counter
	delivered    prometheus.Counter
	acknowledged prometheus.Counter
	dropped      labelled
	delays       prometheus.Histogram
	failures     labelled
	commits      prometheus.Histogram
	batch        prometheus.Histogram
	edusStored   prometheus.Counter
	sent         labelled
	received     labelled
	inbound      labelled
	checks       labelled
	lookups      labelled
	reads        labelled
	bodies       labelled
	gauges       *gauges
	// storedAt returns when a message was stored, or false if that is not known.
	storedAt   func(types.Position) (time.Time, bool)
	collectors []prometheus.Collector
}

func newMetrics(storedAt func(types.Position) (time.Time, bool)) *metrics {
	m := &metrics{gauges: newGauges(), storedAt: storedAt}
	m.requests = m.labelled("requests_total", "Client requests to send messages, by HTTP status.", "code", requestCodes)
	m.accepted = m.labelled("messages_accepted_total",
		"Messages that clients or other servers sent for a device, or for all devices of a user, by where they came from.", "source", acceptedSources)
	m.repeated = m.counter("messages_repeated_total", "Messages that were stored before and are not stored again, one for each device and for each EDU.")
	m.stored = m.counter("messages_stored_total", "Messages stored, one for each device.")
	m.failed = m.counter("messages_failed_total", "Messages that were not stored for now; who sent them was told to send them again.")
	m.delivered = m.counter("messages_delivered_total", "Messages handed over in /sync responses, repetitions included.")
	m.acknowledged = m.counter("messages_acknowledged_total", "Messages deleted because their device has them.")
	m.dropped = m.labelled("messages_dropped_total", "Messages that nobody will get, by reason.", "reason", dropReasons)
	m.delays = m.histogram("delivery_delay_seconds",
		"How long messages waited from being stored to being handed over in a /sync response, repetitions included.", delayBuckets)
	m.failures = m.labelled("database_failures_total", "Attempts that the database failed, by operation.", "operation", databaseUses)
	m.commits = m.histogram("commit_duration_seconds", "How long commits took.", prometheus.ExponentialBuckets(0.0005, 2, 16))
	m.batch = m.histogram("commit_messages", "Messages stored by one commit.", prometheus.ExponentialBuckets(1, 4, 8))
	m.edusStored = m.counter("edus_stored_total", "EDUs stored for other servers.")
	m.sent = m.labelled("edus_sent_total", "EDUs for other servers: sent, refused for now, or set aside after the last refusal.", "outcome", sentOutcomes)
	m.received = m.labelled("edus_received_total", "EDUs from other servers: applied, repetitions included, or why they were not.", "outcome", receivedOutcomes)
	m.inbound = m.labelled("inbound_transactions_total",
		"Transactions of other servers with EDUs for devices: stored, limited and to be sent again (429), or failed and to be sent again (5xx).",
		"result", inboundResults)
	m.checks = m.labelled("key_request_checks_total",
		"Checks whether the device of another server's key request is known: checked, failed, or dropped.", "outcome", keyRequestResults)
	m.lookups = m.labelled("device_cache_lookups_total", "Users whose devices were looked for in the cache: hit or miss.", "result", cacheResults)
	m.reads = m.labelled("queue_cache_reads_total", "Reads of queues for /sync: answered from memory (hit) or by the database (miss).",
		"result", cacheResults)
	m.bodies = m.labelled("bodies_refused_total",
		"Requests with a body for which there was no room in memory, by where they came from; who sent them was told to send them again.",
		"source", acceptedSources)
	m.collectors = append(m.collectors, m.gauges)
	return m
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help})
	m.collectors = append(m.collectors, c)
	return c
}

func (m *metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help, Buckets: buckets,
	})
	m.collectors = append(m.collectors, h)
	return h
}

// labelled is a counter with one label, of which all values are known.
type labelled struct {
	vec     *prometheus.CounterVec
	byValue map[string]prometheus.Counter
}

func (m *metrics) labelled(name, help, label string, values []string) labelled {
	l := labelled{
		vec: prometheus.NewCounterVec(
			prometheus.CounterOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help}, []string{label}),
		byValue: make(map[string]prometheus.Counter, len(values)),
	}
	for _, value := range values {
		l.byValue[value] = l.vec.WithLabelValues(value)
	}
	m.collectors = append(m.collectors, l.vec)
	return l
}

func (l labelled) add(value string, n int) {
	c, known := l.byValue[value]
	if !known {
		c = l.vec.WithLabelValues(otherLabel)
	}
	c.Add(float64(n))
}

// live adds a gauge that is asked for at each scrape.
func (m *metrics) live(name, help string, value func() int) {
	m.collectors = append(m.collectors, prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help},
		func() float64 { return float64(value()) },
	))
}

func (m *metrics) register(registerer prometheus.Registerer) error {
	var errs []error
	for _, c := range m.collectors {
		errs = append(errs, registerer.Register(c))
	}
	return errors.Join(errs...)
}

func (m *metrics) observeRequest(code int) { m.requests.add(strconv.Itoa(code), 1) }

func (m *metrics) observeCommit(c writer.Commit) {
	if c.Err != nil {
		m.failures.add(failedCommit, 1)
		return
	}
	m.commits.Observe(c.Duration.Seconds())
	m.batch.Observe(float64(c.Copies))
}

func (m *metrics) observeRefusedBody(source string) { m.bodies.add(source, 1) }

func (m *metrics) observeFailedRead() { m.failures.add(failedRead, 1) }

func (m *metrics) observeInbound(err error) {
	switch {
	case err == nil:
		m.inbound.add(inboundStored, 1)
	case errors.Is(err, consumers.ErrLimitExceeded):
		m.inbound.add(inboundLimited, 1)
	default:
		m.inbound.add(inboundFailed, 1)
	}
}

func (m *metrics) observeLookups(hits, misses int) {
	m.lookups.add(cacheHit, hits)
	m.lookups.add(cacheMiss, misses)
}

func (m *metrics) observeRead(fromMemory bool) {
	if fromMemory {
		m.reads.add(cacheHit, 1)
	} else {
		m.reads.add(cacheMiss, 1)
	}
}

func (m *metrics) observeSent(outcome outbox.Outcome, edus int) { m.sent.add(string(outcome), edus) }

func (m *metrics) observeReceived(outcome string) { m.received.add(outcome, 1) }

func (m *metrics) observeKeyRequest(outcome string) { m.checks.add(outcome, 1) }
