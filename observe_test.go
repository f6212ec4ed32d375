package todevicemodule_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// observed is a running module with its metrics and its log.
type observed struct {
	*todevicemodule.Module
	store    *faulty.Store
	registry *prometheus.Registry
	log      *test.Hook
}

var observedDevice = types.Device{UserID: "@bob:test", DeviceID: "PHONE"}

func startObserved(t *testing.T, open testdb.Open, config todevicemodule.Config) *observed {
	t.Helper()
	log, hook := test.NewNullLogger()
	o := &observed{store: &faulty.Store{Store: open(t)}, registry: prometheus.NewRegistry(), log: hook}
	var err error
	if o.Module, err = todevicemodule.New(config, oneDevice{store: o.store}, o.registry, logrus.NewEntry(log)); err == nil {
		err = o.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Stop(context.Background()) })
	return o
}

func (o *observed) send(t *testing.T, n int) {
	t.Helper()
	body := fmt.Sprintf(`{"messages":{"@bob:test":{"PHONE":{"n":%d}}}}`, n)
	req := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(body)).WithContext(t.Context())
	if res := o.SendToDevice(req, types.Device{UserID: "@alice:test", DeviceID: "PHONE"}, "m.test", fmt.Sprint(n)); res.Code != http.StatusOK {
		t.Fatalf("%d %v", res.Code, res.JSON)
	}
}

// counter returns the value of a counter with one label.
func (o *observed) counter(t *testing.T, name, label string) (value float64) {
	t.Helper()
	families, err := o.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "dendrite_todevice_"+name && metric.GetLabel()[0].GetValue() == label {
				return metric.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no %s of %s", name, label)
	return 0
}

// A client that goes away while its queue is read is no failure of the database. A read that fails is.
func TestClientThatGoesAwayIsNoFailureOfTheDatabase(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		o := startObserved(t, open, todevicemodule.DefaultConfig())
		o.send(t, 1)
		read := func(ctx context.Context) {
			if _, _, err := o.ReadForSync(ctx, observedDevice, 0, o.LatestPosition(), nobodyIgnored); err == nil {
				t.Error("the failure is hidden")
			}
		}
		ctx, goAway := context.WithCancel(t.Context())
		o.store.OnRead(func() error { goAway(); return nil })
		read(ctx)
		if n := o.counter(t, "database_failures_total", "read"); n != 0 || len(o.log.AllEntries()) != 0 {
			t.Errorf("a client went away: %v failures are counted, %d lines logged", n, len(o.log.AllEntries()))
		}
		o.store.OnRead(func() error { return errors.New("away") })
		read(t.Context())
		if n := o.counter(t, "database_failures_total", "read"); n != 1 {
			t.Errorf("a read failed: %v failures are counted", n)
		}
	})
}

// What is dropped of the host's own stream counts as a message, wherever its sender is: it came in no EDU.
func TestDroppedEntriesAreCounted(t *testing.T) {
	o := startObserved(t, testdb.SQLite(t), todevicemodule.DefaultConfig())
	entry := consumers.Entry{Stream: "S", Timestamp: time.Now(), Device: observedDevice, Type: "m.test", Content: json.RawMessage(`broken`)}
	var entries []consumers.Entry
	for i, sender := range []string{"@alice:test", "@carol:there"} {
		entry.Sequence, entry.Sender = uint64(i), sender
		entries = append(entries, entry)
	}
	entries = append(entries, consumers.Entry{Stream: "S", Sequence: 2, Timestamp: time.Now(), Unreadable: true})
	if err := o.Receive(t.Context(), entries...); err != nil {
		t.Fatal(err)
	}
	if n := o.counter(t, "messages_dropped_total", "malformed"); n != 3 {
		t.Errorf("%v messages are counted, want 3", n)
	}
	if n := o.counter(t, "edus_received_total", "malformed"); n != 0 {
		t.Errorf("%v EDUs are counted", n)
	}
}

// Whoever looks for messages that are late finds in the log which server was told to wait, but not a line for each attempt.
func TestLimitedServerIsLogged(t *testing.T) {
	config := todevicemodule.DefaultConfig()
	config.Limits.OriginEDUsPerSecond, config.Limits.OriginEDUsBurst = 1, 100
	o := startObserved(t, testdb.SQLite(t), config)
	edus := make([]json.RawMessage, 101)
	for _, origin := range []string{"there", "there", "elsewhere", "there"} {
		if err := o.ReceiveEDUs(t.Context(), origin, edus); !errors.Is(err, consumers.ErrLimitExceeded) {
			t.Errorf("%s: got the error %v", origin, err)
		}
	}
	var named []string
	for _, line := range o.log.AllEntries() {
		if origin, ok := line.Data["origin"].(string); ok && line.Level == logrus.InfoLevel {
			named = append(named, origin)
		}
	}
	if !slices.Equal(named, []string{"there", "elsewhere"}) {
		t.Errorf("logged are %v", named)
	}
}
