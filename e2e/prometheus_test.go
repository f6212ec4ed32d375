package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

const (
	rulesFile     = "../deploy/prometheus-rules.yml"
	rulesTestFile = "../deploy/prometheus-rules.test.yml"
	dashboardFile = "../deploy/grafana-dashboard.json"
)

// tool returns the path of a program of Debian's package prometheus.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("install prometheus (Debian: apt-get install --no-install-recommends prometheus): %v", err)
	}
	return path
}

// The alerts load, fire when they should, and don't when they should not.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "rules", rulesFile}, {"test", "rules", rulesTestFile}} {
		if out, err := exec.Command(tool(t, "promtool"), args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	// promtool would say so.
	broken := filepath.Join(t.TempDir(), "rules.yml")
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(broken, []byte(strings.Replace(string(rules), "expr: ", "expr: sum(", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool(t, "promtool"), "check", "rules", broken).CombinedOutput(); err == nil {
		t.Errorf("promtool takes broken rules: %s", out)
	}
}

// Prometheus is a running one that scrapes a server.
type Prometheus struct {
	url  string
	home string
}

// StartPrometheus starts one that scrapes the server, with the alerts of the repository.
func StartPrometheus(t testing.TB, s *Server) *Prometheus {
	t.Helper()
	address, err := remote.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	p := &Prometheus{url: "http://" + address, home: t.TempDir()}
	config := object{
		"global":     object{"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
		"rule_files": []string{rules},
		"scrape_configs": []object{{
			"job_name": "dendrite", "static_configs": []object{{"targets": []string{s.address}}},
			"basic_auth": object{"username": metricsUser, "password": metricsPassword},
		}},
	}
	file := filepath.Join(p.home, "prometheus.yml")
	if err = writeJSON(file, config); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(p.home, "prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool(t, "prometheus"), "--config.file="+file, "--web.listen-address="+address,
		"--storage.tsdb.path="+filepath.Join(p.home, "data"), "--query.lookback-delta=10s")
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.home, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("prometheus: %v", err)
		}
		_ = log.Close()
		if output, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("log of prometheus:\n%s", output)
		}
	})
	eventually(t, "prometheus is ready", func() (bool, any) {
		res, err := http.Get(p.url + "/-/ready") //nolint:noctx // it is on loopback
		if err != nil {
			return false, err
		}
		return res.StatusCode == http.StatusOK, errorsOf(res.Status, res.Body.Close())
	})
	return p
}

func errorsOf(status string, err error) string { return fmt.Sprint(status, " ", err) }

// ask calls the API and decodes the data of its answer.
func (p *Prometheus) ask(t testing.TB, call string, query url.Values, into any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/v1/"+call+"?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck
	var answer struct {
		Status string          `json:"status"`
		Error  string          `json:"error"`
		Data   json.RawMessage `json:"data"`
	}
	if err = json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s %s: %s %s %v", call, query.Encode(), answer.Status, answer.Error, err)
	}
	if err = json.Unmarshal(answer.Data, into); err != nil {
		t.Fatalf("%s: %v in %s", call, err, answer.Data)
	}
}

// value returns the value of an expression that has one series.
func (p *Prometheus) value(t testing.TB, expr string) string {
	t.Helper()
	var data struct {
		Result []struct {
			Value [2]any `json:"value"`
		} `json:"result"`
	}
	p.ask(t, "query", url.Values{"query": {expr}}, &data)
	if len(data.Result) != 1 {
		return fmt.Sprintf("%d series", len(data.Result))
	}
	return fmt.Sprint(data.Result[0].Value[1])
}

type loadedRule struct {
	Name           string    `json:"name"`
	State          string    `json:"state"`
	Health         string    `json:"health"`
	LastError      string    `json:"lastError"`
	LastEvaluation time.Time `json:"lastEvaluation"`
}

func (p *Prometheus) rules(t testing.TB) []loadedRule {
	t.Helper()
	var data struct {
		Groups []struct {
			Name  string       `json:"name"`
			Rules []loadedRule `json:"rules"`
		} `json:"groups"`
	}
	p.ask(t, "rules", nil, &data)
	if len(data.Groups) != 1 || data.Groups[0].Name != "dendrite-todevice" {
		t.Fatalf("the groups of rules are %+v", data.Groups)
	}
	return data.Groups[0].Rules
}

// state waits until every alert was evaluated without an error, and returns the state of one.
func (p *Prometheus) state(t testing.TB, alert string) (state string) {
	t.Helper()
	eventually(t, "the rules are evaluated", func() (bool, any) {
		state = ""
		for _, rule := range p.rules(t) {
			if rule.Health != "ok" || rule.LastEvaluation.IsZero() {
				return false, fmt.Sprintf("%+v", rule)
			}
			if rule.Name == alert {
				state = rule.State
			}
		}
		return state != "", "no alert " + alert
	})
	return state
}

// Prometheus scrapes a running server: it has what happened, evaluates the alerts and can draw the dashboard.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := startWithMetrics(t, b, Options{})
		p := StartPrometheus(t, s)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		since := bob.Settle(t, "")
		const n = 7
		for i := range n {
			alice.Send(t, "m.test", To(object{"n": i}, bob))
		}
		alice.Send(t, "m.test", Messages{bob.UserID: {"NO_SUCH_DEVICE": object{}}})
		_, since = bob.Receive(t, since, n)
		bob.Sync(t, Sync{Since: since})
		for expr, want := range map[string]int{
			`dendrite_todevice_messages_stored_total{job="dendrite"}`:           n,
			`dendrite_todevice_messages_delivered_total`:                        n,
			`dendrite_todevice_messages_acknowledged_total`:                     n,
			`dendrite_todevice_messages_dropped_total{reason="unknown_device"}`: 1,
			`dendrite_todevice_requests_total{code="200"}`:                      n + 1,
			`dendrite_todevice_delivery_delay_seconds_count`:                    n,
			`dendrite_todevice_commit_messages_sum`:                             n,
			`dendrite_todevice_queue_messages`:                                  0,
			`dendrite_todevice_outbox_edus{state="waiting"}`:                    0,
			`up{job="dendrite"}`:                                                1,
		} {
			eventually(t, expr+" is scraped", func() (bool, any) {
				got := p.value(t, expr)
				return got == fmt.Sprint(want), fmt.Sprintf("%s, want %d", got, want)
			})
		}
		for _, expr := range dashboardExpressions(t) {
			var drawn any
			p.ask(t, "query", url.Values{"query": {expr}}, &drawn)
		}
		eventually(t, "no alert of a healthy server is on its way", func() (bool, any) {
			state := p.state(t, "ToDeviceServerDown")
			for _, rule := range p.rules(t) {
				if rule.State != "inactive" {
					return false, fmt.Sprintf("%+v", rule)
				}
			}
			return state == "inactive", state
		})
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the alert that the server is down is on its way", func() (bool, any) {
			state := p.state(t, "ToDeviceServerDown")
			return state == "pending", state // it fires after 2 minutes
		})
	})
}

// dashboardExpressions returns what the dashboard asks for, with something in the place of its variables.
func dashboardExpressions(t testing.TB) (all []string) {
	t.Helper()
	content, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err = json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			all = append(all, strings.NewReplacer("$__rate_interval", "10s", "$instance", ".*").Replace(target.Expr))
		}
	}
	if len(all) < 20 {
		t.Fatalf("the dashboard has %d expressions", len(all))
	}
	return all
}
