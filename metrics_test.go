package todevicemodule

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
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

func (idleHost) ForeignQueue(DatabaseConfig) (storage.ForeignQueue, error) { return nil, nil } //nolint:nilnil // it has none

func newModule(registerer prometheus.Registerer, err error) (*Module, error) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return New(DefaultConfig(), idleHost{err: err}, registerer, logrus.NewEntry(log))
}

// everyMetric returns what a module shows that has seen everything once.
func everyMetric(t *testing.T) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewRegistry()
	m, err := newModule(registry, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.metrics.gauges.set(fullSample())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// fullSample is that of a store in which everything waits.
func fullSample() sample {
	at := time.UnixMicro(1_700_000_000_000_000)
	s := sample{at: at, took: 2 * time.Second, totals: storage.Totals{
		Queues: 7, Messages: 70, Oldest: 3,
		Outbox: storage.Line{Waiting: 11, Bytes: 1100, Oldest: types.Position(at.Add(-time.Hour).UnixMicro()), Refused: 12, SetAside: 13},
	}}
	for i := range worstQueues {
		device := types.Device{UserID: "@user:example.org", DeviceID: "DEVICE" + strconv.Itoa(i)}
		s.largest = append(s.largest, storage.Queue{Device: device, Messages: 50 - i})
		s.oldest = append(s.oldest, storage.Queue{Device: device, Oldest: types.Position(at.Add(-time.Duration(100-i) * time.Second).UnixMicro())})
	}
	return s
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

// Nobody looks at what is stored for metrics that nobody sees.
func TestWithoutMetricsThereIsNoSampler(t *testing.T) {
	m, err := newModule(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.sampler != nil || m.directory.Observe != nil {
		t.Error("a module without metrics takes samples")
	}
	if m, err = newModule(prometheus.NewRegistry(), nil); err != nil || m.sampler == nil || m.directory.Observe == nil {
		t.Errorf("a module with metrics takes none, %v", err)
	}
}

func TestMetricNames(t *testing.T) {
	registry := prometheus.NewRegistry()
	m, err := newModule(registry, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.metrics.gauges.set(fullSample())
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("the names break the conventions: %+v, %v", problems, err)
	}
	for _, family := range everyMetric(t) {
		if !strings.HasPrefix(family.GetName(), "dendrite_todevice_") {
			t.Errorf("%s is not under dendrite_todevice_", family.GetName())
		}
		if !strings.HasSuffix(family.GetHelp(), ".") {
			t.Errorf("the help of %s is no sentence: %s", family.GetName(), family.GetHelp())
		}
	}
}

// constants returns the values of the constants of a type in a file.
func constants(t *testing.T, file, typeName string) (values []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != typeName {
			return true
		}
		for _, value := range spec.Values {
			literal, ok := value.(*ast.BasicLit)
			if !ok {
				t.Fatalf("a %s in %s is no literal", typeName, file)
			}
			text, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, text)
		}
		return true
	})
	if len(values) == 0 {
		t.Fatalf("%s has no %s", file, typeName)
	}
	return values
}

// outcomes returns the values of a file's constants whose names begin like that.
func outcomes(t *testing.T, file, pattern string) (values []string) {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`(?m)^\t`+pattern+`\w*\s+= "([a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		values = append(values, match[1])
	}
	if len(values) == 0 {
		t.Fatalf("%s has no %s", file, pattern)
	}
	return values
}

// The values of labels are few, known beforehand and there from the start. None of them names a user, a device or a
// server: whatever the code does not know is counted as "other".
func TestLabelValues(t *testing.T) {
	// Nothing but an EDU of another server is dropped for these. What is malformed in the host's own stream is, too.
	onlyOfEDUs := []string{"spoofed", "no_message_id", "too_large", "too_many_recipients"}
	var reasons []string
	for _, reason := range constants(t, "trace/record.go", "Reason") {
		if !slices.Contains(onlyOfEDUs, reason) {
			reasons = append(reasons, reason)
		}
	}
	ranks := []string{"1", "2", "3", "4", "5"}
	want := map[string]map[string][]string{
		"requests_total":             {"code": {"200", "400", "413", "500", "503"}},
		"messages_accepted_total":    {"source": {"client", "federation"}},
		"messages_dropped_total":     {"reason": reasons},
		"bodies_refused_total":       {"source": {"client", "federation"}},
		"database_failures_total":    {"operation": {"commit", "read", "sample"}},
		"edus_sent_total":            {"outcome": constants(t, "outbox/outbox.go", "Outcome")},
		"edus_received_total":        {"outcome": outcomes(t, "consumers/federation.go", "EDU")},
		"key_request_checks_total":   {"outcome": outcomes(t, "consumers/keyrequests.go", "Device")},
		"device_cache_lookups_total": {"result": {"hit", "miss"}},
		"queue_cache_reads_total":    {"result": {"hit", "miss"}},
		"inbound_transactions_total": {"result": {"stored", "limited", "failed"}},
		"outbox_edus":                {"state": {"waiting", "refused", "set_aside"}},
		"largest_queue_messages":     {"rank": ranks},
		"oldest_queue_age_seconds":   {"rank": ranks},
	}
	seen := 0
	for _, family := range everyMetric(t) {
		name := strings.TrimPrefix(family.GetName(), "dendrite_todevice_")
		got := make(map[string][]string)
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				got[label.GetName()] = append(got[label.GetName()], label.GetValue())
			}
		}
		if len(got) == 0 {
			continue
		}
		seen++
		if len(got) != len(want[name]) {
			t.Errorf("%s has the labels %v", name, got)
		}
		for label, values := range want[name] {
			slices.Sort(values)
			slices.Sort(got[label])
			if !slices.Equal(got[label], values) {
				t.Errorf("%s has %s=%v, want %v", name, label, got[label], values)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d metrics have labels, want %d", seen, len(want))
	}
}

func TestUnknownLabelValuesAreCountedTogether(t *testing.T) {
	m := newMetrics(allotted)
	m.observeRequest(418)
	m.observeRequest(999)
	m.observeReceived("@alice:example.org")
	m.Record(trace.Record{Step: trace.Dropped, Reason: "example.org"}, trace.Record{Step: trace.Dropped, Reason: ""})
	for name, c := range map[string]struct {
		l    labelled
		want float64
	}{"requests": {m.requests, 2}, "received": {m.received, 1}, "dropped": {m.dropped, 2}} {
		if got := testutil.ToFloat64(c.l.vec.WithLabelValues("other")); got != c.want {
			t.Errorf("%s: %v are counted as other, want %v", name, got, c.want)
		}
		if n := testutil.CollectAndCount(c.l.vec); n != len(c.l.byValue)+1 {
			t.Errorf("%s has %d values, want %d", name, n, len(c.l.byValue)+1)
		}
	}
}

func TestObservations(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newMetrics(allotted)
	if err := m.register(registry); err != nil {
		t.Fatal(err)
	}
	m.observeRequest(200)
	m.observeRequest(200)
	m.observeRequest(413)
	m.observeCommit(writer.Commit{Requests: 2, Copies: 5, Duration: time.Second})
	m.observeCommit(writer.Commit{Requests: 2, Copies: 7, Duration: time.Second, Err: errors.New("away")})
	m.observeFailedRead()
	m.observeSent(outbox.Sent, 100)
	m.observeSent(outbox.SetAside, 1)
	m.observeReceived(consumers.EDUSpoofed)
	m.observeKeyRequest(consumers.DeviceNotChecked)
	m.observeLookups(3, 2)
	m.observeRead(true)
	m.observeRead(true)
	m.observeRead(false)
	m.observeRefusedBody(fromFederation)
	m.observeInbound(nil)
	m.observeInbound(nil)
	m.observeInbound(fmt.Errorf("too many: %w", consumers.ErrLimitExceeded))
	m.observeInbound(errors.New("away"))
	wantSeries(t, registry, map[string]float64{
		`requests_total{code="200"}`:                   2,
		`requests_total{code="413"}`:                   1,
		`bodies_refused_total{source="federation"}`:    1,
		`bodies_refused_total{source="client"}`:        0,
		`commit_messages_count`:                        1,
		`commit_messages_sum`:                          5,
		`commit_duration_seconds_sum`:                  1,
		`database_failures_total{operation="commit"}`:  1,
		`database_failures_total{operation="read"}`:    1,
		`edus_sent_total{outcome="sent"}`:              100,
		`edus_sent_total{outcome="set_aside"}`:         1,
		`edus_received_total{outcome="spoofed"}`:       1,
		`key_request_checks_total{outcome="dropped"}`:  1,
		`device_cache_lookups_total{result="hit"}`:     3,
		`device_cache_lookups_total{result="miss"}`:    2,
		`queue_cache_reads_total{result="hit"}`:        2,
		`queue_cache_reads_total{result="miss"}`:       1,
		`inbound_transactions_total{result="stored"}`:  2,
		`inbound_transactions_total{result="limited"}`: 1,
		`inbound_transactions_total{result="failed"}`:  1,
	})
}

func TestStepsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(10 * 365 * 24 * time.Hour) // from 2000 on, before which no position is a time
		registry := prometheus.NewRegistry()
		m := newMetrics(func(p types.Position) (time.Time, bool) { return p.Time(), p > lastImported })
		if err := m.register(registry); err != nil {
			t.Fatal(err)
		}
		device := types.Device{UserID: "@bob:example.org", DeviceID: "B"}
		now := time.Now()
		before := func(d time.Duration) types.Position { return types.Position(now.Add(-d).UnixMicro()) }
		m.Record(
			trace.Record{Step: trace.Accepted, Recipient: device, Sender: "@alice:example.org"},
			trace.Record{Step: trace.Accepted, Recipient: device, Sender: "@eve:example.net", Origin: "example.net"},
			trace.Record{Step: trace.Accepted, Recipient: device, Sender: "@eve:example.net", Origin: "example.net"},
			trace.Record{Step: trace.Repeated, Recipient: device},
			trace.Record{Step: trace.Stored, Recipient: device, Position: before(0)},
			trace.Record{Step: trace.Stored, Recipient: device, Position: before(0)},
			trace.Record{Step: trace.Stored, Destination: "example.net", Position: before(0)},
			trace.Record{Step: trace.Failed, Recipient: device},
			trace.Record{Step: trace.HandedOver, Recipient: device, Position: before(2 * time.Second)},
			trace.Record{Step: trace.HandedOver, Recipient: device, Position: before(-time.Second)}, // the clock was set back
			trace.Record{Step: trace.HandedOver, Recipient: device, Position: 42},                   // imported
			trace.Record{Step: trace.Acknowledged, Recipient: device, Position: before(0), Count: 40},
			trace.Record{Step: trace.Sent, Destination: "example.net"},
		)
		m.Record(
			trace.Record{Step: trace.Dropped, Reason: trace.UnknownDevice, Recipient: device},
			trace.Record{Step: trace.Dropped, Reason: trace.Purged, Recipient: device, Position: before(0), Count: 7},
			trace.Record{Step: trace.Dropped, Reason: trace.Malformed, Origin: "example.net"},
		)
		wantSeries(t, registry, map[string]float64{
			`messages_accepted_total{source="client"}`:        1,
			`messages_accepted_total{source="federation"}`:    2,
			`messages_repeated_total`:                         1,
			`messages_stored_total`:                           2,
			`messages_failed_total`:                           1,
			`messages_delivered_total`:                        3,
			`messages_acknowledged_total`:                     40,
			`messages_dropped_total{reason="unknown_device"}`: 1,
			`messages_dropped_total{reason="purged"}`:         7,
			`edus_stored_total`:                               1,
			`delivery_delay_seconds_count`:                    2,
			`delivery_delay_seconds_sum`:                      2,
		})
	})
}

// An EDU that is passed over whole is counted by its outcome, and not as a message too. Every other drop is counted
// by its reason: what the database refuses, for its alert, from wherever it came.
func TestNothingIsCountedTwice(t *testing.T) {
	for _, reason := range constants(t, "trace/record.go", "Reason") {
		m := newMetrics(allotted)
		m.Record(trace.Record{Step: trace.Dropped, Reason: trace.Reason(reason), Origin: "example.net"})
		counted := testutil.ToFloat64(m.dropped.vec.WithLabelValues(otherLabel))
		for _, c := range m.dropped.byValue {
			counted += testutil.ToFloat64(c)
		}
		_, asEDU := m.received.byValue[reason]
		if asEDU == (counted == 1) {
			t.Errorf("%s of another server is counted %v times as a message, and as an EDU: %v", reason, counted, asEDU)
		}
	}
}

// wantSeries checks the named series, without their common prefix; every counter that is not named is zero.
func wantSeries(t *testing.T, from prometheus.Gatherer, want map[string]float64) {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for series, got := range allSeries(families) {
		value, named := want[series]
		if named {
			found++
		}
		if got != value && (named || strings.Contains(series, "_total")) {
			t.Errorf("%s is %v, want %v", series, got, value)
		}
	}
	if found != len(want) {
		t.Errorf("%d of %d series are there", found, len(want))
	}
}

// allSeries returns the values by name and label, without the common prefix; of a histogram those of _sum and _count.
func allSeries(families []*dto.MetricFamily) map[string]float64 {
	series := make(map[string]float64)
	for _, family := range families {
		name := strings.TrimPrefix(family.GetName(), "dendrite_todevice_")
		for _, metric := range family.GetMetric() {
			labels := ""
			for _, label := range metric.GetLabel() {
				labels += label.GetName() + `="` + label.GetValue() + `"`
			}
			if labels != "" {
				labels = "{" + labels + "}"
			}
			switch {
			case metric.GetHistogram() != nil:
				series[name+"_sum"+labels] = metric.GetHistogram().GetSampleSum()
				series[name+"_count"+labels] = float64(metric.GetHistogram().GetSampleCount())
			case metric.GetCounter() != nil:
				series[name+labels] = metric.GetCounter().GetValue()
			default:
				series[name+labels] = metric.GetGauge().GetValue()
			}
		}
	}
	return series
}
