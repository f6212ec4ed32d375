package e2e

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What /metrics asks for.
const metricsUser, metricsPassword = "prometheus", "a password for the metrics"

// startWithMetrics starts a server of the test's own that shows its metrics.
func startWithMetrics(t testing.TB, b Backend, o Options) *Server {
	t.Helper()
	s := NewServer(t, b, o)
	cfg := s.config(o)
	cfg["global"].(object)["metrics"] = object{
		"enabled": true, "basic_auth": object{"username": metricsUser, "password": metricsPassword},
	}
	if err := writeJSON(s.path("dendrite.yaml"), cfg); err != nil {
		t.Fatal(err)
	}
	s.MustStart(t)
	return s
}

// scrape returns the module's series of a server by name and labels, without their common prefix.
func scrape(t testing.TB, s *Server) map[string]float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(metricsUser, metricsPassword)
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck
	if res.StatusCode != http.StatusOK {
		t.Fatalf("/metrics answers %s", res.Status)
	}
	series := make(map[string]float64)
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		line, ours := strings.CutPrefix(lines.Text(), "dendrite_todevice_")
		if !ours {
			continue
		}
		name, text, _ := strings.Cut(line, " ")
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		series[name] = value
	}
	if err = lines.Err(); err != nil {
		t.Fatal(err)
	}
	return series
}

// wantMetrics waits until a server shows these values. What is counted after an answer may come a moment later.
func wantMetrics(t testing.TB, s *Server, want map[string]float64) {
	t.Helper()
	eventually(t, "the metrics are right", func() (bool, any) {
		got, wrong := scrape(t, s), []string{}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if value, there := got[name]; !there || value != want[name] {
				wrong = append(wrong, fmt.Sprintf("%s is %v (there: %v), want %v", name, value, there, want[name]))
			}
		}
		return len(wrong) == 0, strings.Join(wrong, "; ")
	})
}

func TestMetricsTellWhatHappened(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := startWithMetrics(t, b, Options{})
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		second := bob.Login(t, s, "SECOND")
		since := bob.Settle(t, "")
		const n = 5
		for i := range n {
			alice.Send(t, "m.test", To(object{"n": i}, bob))
		}
		repeated := unique("txn")
		alice.SendTxn(t, "m.test", repeated, Messages{bob.UserID: {"*": object{"n": n}}})
		alice.SendTxn(t, "m.test", repeated, Messages{bob.UserID: {"*": object{"n": n}}})
		alice.Send(t, "m.test", Messages{bob.UserID: {"NO_SUCH_DEVICE": object{}}})
		if a := alice.Put(t.Context(), "m.test", unique("txn"), []byte("{")); a.Status != http.StatusBadRequest {
			t.Fatalf("want 400, got %v", a)
		}
		wantMetrics(t, s, map[string]float64{
			`requests_total{code="200"}`:                      n + 3,
			`requests_total{code="400"}`:                      1,
			`requests_total{code="503"}`:                      0,
			`messages_stored_total`:                           n + 2,
			`messages_repeated_total`:                         2, // devices
			`messages_dropped_total{reason="unknown_device"}`: 1,
			`messages_delivered_total`:                        0,
			`commit_messages_sum`:                             n + 2,
			`edus_received_total{outcome="applied"}`:          0,
		})

		_, since = bob.Receive(t, since, n+1)
		wantMetrics(t, s, map[string]float64{`messages_delivered_total`: n + 1, `delivery_delay_seconds_count`: n + 1})
		bob.Sync(t, Sync{Since: since})
		wantMetrics(t, s, map[string]float64{
			`messages_acknowledged_total`: n + 1, `messages_delivered_total`: n + 1, `acknowledgements_pending`: 0, `writer_queue_requests`: 0,
		})
		if hits := scrape(t, s)[`device_cache_lookups_total{result="hit"}`]; hits < n-1 {
			t.Errorf("the devices of %d messages to one user were known %v times", n, hits)
		}

		// Gauges are looked at from the start.
		s.Restart(t)
		eventually(t, "what waits is shown", func() (bool, any) {
			got := scrape(t, s)
			return got["queue_messages"] == 1 && got["queues"] == 1 && got[`largest_queue_messages{rank="1"}`] == 1 &&
				got["oldest_message_age_seconds"] > 0 && got[`oldest_queue_age_seconds{rank="1"}`] == got["oldest_message_age_seconds"] &&
				got["last_sample_timestamp_seconds"] > 0, got
		})
		for name := range scrape(t, s) {
			for _, private := range []string{"@", ":" + s.name, string(second.DeviceID), string(bob.DeviceID), bob.UserID.Localpart()} {
				if strings.Contains(name, private) {
					t.Errorf("%s names somebody", name)
				}
			}
		}
	})
}

func TestMetricsOfFederation(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := startWithMetrics(t, b, Options{Federation: true})
		remote := NewFakeRemote(t, here)
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		const n = 3
		for i := range n {
			alice.Send(t, "m.test", To(object{"n": i}, device))
		}
		remote.Receive(t, n, deadline)
		wantMetrics(t, here, map[string]float64{
			`edus_stored_total`: n, `edus_sent_total{outcome="sent"}`: n, `edus_sent_total{outcome="refused"}`: 0, `messages_stored_total`: 0,
		})

		inbound := remote.ToDevice("first", To(object{"n": 1}, alice))
		remote.MustSend(t, here, unique("txn"), inbound)
		remote.MustSend(t, here, unique("txn"), inbound)
		spoofed := remote.ToDevice("second", To(object{"n": 2}, alice))
		spoofed["content"].(object)["sender"] = "@eve:example.org"
		remote.MustSend(t, here, unique("txn"), spoofed)
		wantMetrics(t, here, map[string]float64{
			`messages_accepted_total{source="federation"}`: 2,
			`edus_received_total{outcome="applied"}`:       2,
			`edus_received_total{outcome="spoofed"}`:       1,
			`inbound_transactions_total{result="stored"}`:  3,
			`messages_stored_total`:                        1,
			`messages_repeated_total`:                      1,
		})

		remote.Close(t)
		alice.Send(t, "m.test", To(object{"n": n}, device))
		here.Restart(t)
		eventually(t, "the outbox is shown", func() (bool, any) {
			got := scrape(t, here)
			return got[`outbox_edus{state="waiting"}`] == 1 && got["outbox_bytes"] > 0 && got["outbox_oldest_age_seconds"] > 0 &&
				got["outbox_destinations"] == 1, got
		})
	})
}

// Without metrics nothing is shown, and nobody looks at what is stored.
func TestMetricsAreOff(t *testing.T) {
	s := SharedServer(t, SQLite)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("/metrics answers %s", res.Status)
	}
}
