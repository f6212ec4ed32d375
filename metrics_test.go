package todevicemodule

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// idleHost has a store that can't be asked anything.
type idleHost struct {
	Host
	err error
}

func (idleHost) Federates() bool { return true }

func (h idleHost) Store(DatabaseConfig) (storage.Store, error) {
	return struct{ storage.Store }{}, h.err
}

func newModule(registerer prometheus.Registerer, err error) (*Module, error) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return New(DefaultConfig(), idleHost{err: err}, registerer, logrus.NewEntry(log))
}

func TestMetricsOfTwoModules(t *testing.T) {
	for range 2 {
		if _, err := newModule(nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	registry := prometheus.NewRegistry()
	if _, err := newModule(registry, nil); err != nil {
		t.Fatal(err)
	}
	var twice prometheus.AlreadyRegisteredError
	if _, err := newModule(registry, nil); !errors.As(err, &twice) || !strings.Contains(err.Error(), ConfigSection) {
		t.Errorf("registering in the same place again gives %v", err)
	}
	if _, err := newModule(prometheus.NewRegistry(), nil); err != nil {
		t.Errorf("registering elsewhere gives %v", err)
	}
}

func TestStoreThatDoesNotOpen(t *testing.T) {
	away := errors.New("no such database")
	if m, err := newModule(nil, away); !errors.Is(err, away) || m != nil {
		t.Errorf("the module is %v, the error %v", m, err)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newMetrics()
	if err := m.register(registry); err != nil {
		t.Fatal(err)
	}
	m.observeRequest(200)
	m.observeRequest(200)
	m.observeRequest(413)
	m.observeCommit(writer.Commit{Requests: 2, Copies: 5, Duration: time.Second})
	m.observeCommit(writer.Commit{Requests: 2, Copies: 7, Duration: time.Second, Err: errors.New("away")})
	m.observeRead(3, nil)
	m.observeRead(0, nil)
	m.observeRead(0, errors.New("away"))
	m.observeSent(outbox.Sent, 100)
	m.observeSent(outbox.SetAside, 1)
	m.observeReceived(consumers.EDUSpoofed)
	m.observeKeyRequest(consumers.DeviceNotChecked)

	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("the names break the conventions: %+v, %v", problems, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "dendrite_todevice_") {
			t.Errorf("%s is not under dendrite_todevice_", family.GetName())
		}
	}
	const want = `
# HELP dendrite_todevice_database_failures_total Attempts that the database failed, by operation.
# TYPE dendrite_todevice_database_failures_total counter
dendrite_todevice_database_failures_total{operation="commit"} 1
dendrite_todevice_database_failures_total{operation="read"} 1
# HELP dendrite_todevice_edus_received_total EDUs from other servers: applied, repetitions included, or why they were not.
# TYPE dendrite_todevice_edus_received_total counter
dendrite_todevice_edus_received_total{outcome="spoofed"} 1
# HELP dendrite_todevice_edus_sent_total EDUs for other servers: sent, refused for now, or set aside after the last refusal.
# TYPE dendrite_todevice_edus_sent_total counter
dendrite_todevice_edus_sent_total{outcome="sent"} 100
dendrite_todevice_edus_sent_total{outcome="set_aside"} 1
# HELP dendrite_todevice_key_request_checks_total Checks whether the device of another server's key request is known: checked, failed, or dropped.
# TYPE dendrite_todevice_key_request_checks_total counter
dendrite_todevice_key_request_checks_total{outcome="dropped"} 1
# HELP dendrite_todevice_messages_delivered_total Messages handed over in /sync responses, repetitions included.
# TYPE dendrite_todevice_messages_delivered_total counter
dendrite_todevice_messages_delivered_total 3
# HELP dendrite_todevice_messages_stored_total Messages stored, one for each device.
# TYPE dendrite_todevice_messages_stored_total counter
dendrite_todevice_messages_stored_total 5
# HELP dendrite_todevice_requests_total Client requests to send messages, by HTTP status.
# TYPE dendrite_todevice_requests_total counter
dendrite_todevice_requests_total{code="200"} 2
dendrite_todevice_requests_total{code="413"} 1
`
	if err = testutil.GatherAndCompare(registry, strings.NewReader(want),
		"dendrite_todevice_requests_total", "dendrite_todevice_messages_stored_total",
		"dendrite_todevice_messages_delivered_total", "dendrite_todevice_database_failures_total",
		"dendrite_todevice_edus_sent_total", "dendrite_todevice_edus_received_total", "dendrite_todevice_key_request_checks_total"); err != nil {
		t.Error(err)
	}
}
