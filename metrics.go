package todevicemodule

import (
	"errors"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// metrics are what the module tells of itself. They are made for each module and registered
// where its host says.
type metrics struct {
	requests  *prometheus.CounterVec
	stored    prometheus.Counter
	delivered prometheus.Counter
	failures  *prometheus.CounterVec
	commits   prometheus.Histogram
	batch     prometheus.Histogram
	sent      *prometheus.CounterVec
	received  *prometheus.CounterVec
	checks    *prometheus.CounterVec
}

func newMetrics() *metrics {
	const namespace, subsystem = "dendrite", "todevice"
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "requests_total",
			Help: "Client requests to send messages, by HTTP status.",
		}, []string{"code"}),
		stored: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "messages_stored_total",
			Help: "Messages stored, one for each device.",
		}),
		delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "messages_delivered_total",
			Help: "Messages handed over in /sync responses, repetitions included.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "database_failures_total",
			Help: "Attempts that the database failed, by operation.",
		}, []string{"operation"}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "commit_duration_seconds",
			Help:    "How long commits took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "commit_messages",
			Help:    "Messages stored by one commit.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8),
		}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "edus_sent_total",
			Help: "EDUs for other servers: sent, refused for now, or set aside after the last refusal.",
		}, []string{"outcome"}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "edus_received_total",
			Help: "EDUs from other servers: applied, repetitions included, or why they were not.",
		}, []string{"outcome"}),
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "key_request_checks_total",
			Help: "Checks whether the device of another server's key request is known: checked, failed, or dropped.",
		}, []string{"outcome"}),
	}
}

func (m *metrics) register(registerer prometheus.Registerer) error {
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.stored, m.delivered, m.failures, m.commits, m.batch, m.sent, m.received, m.checks} {
		errs = append(errs, registerer.Register(c))
	}
	return errors.Join(errs...)
}

func (m *metrics) observeRequest(code int) {
	m.requests.WithLabelValues(strconv.Itoa(code)).Inc()
}

func (m *metrics) observeCommit(c writer.Commit) {
	if c.Err != nil {
		m.failures.WithLabelValues("commit").Inc()
		return
	}
	m.stored.Add(float64(c.Copies))
	m.commits.Observe(c.Duration.Seconds())
	m.batch.Observe(float64(c.Copies))
}

func (m *metrics) observeRead(messages int, err error) {
	if err != nil {
		m.failures.WithLabelValues("read").Inc()
	}
	m.delivered.Add(float64(messages))
}

func (m *metrics) observeSent(outcome outbox.Outcome, edus int) {
	m.sent.WithLabelValues(string(outcome)).Add(float64(edus))
}

func (m *metrics) observeReceived(outcome string) {
	m.received.WithLabelValues(outcome).Inc()
}

func (m *metrics) observeKeyRequest(outcome string) {
	m.checks.WithLabelValues(outcome).Inc()
}
