package todevicemodule

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"
)

const (
	rulesFile     = "deploy/prometheus-rules.yml"
	rulesTestFile = "deploy/prometheus-rules.test.yml"
	dashboardFile = "deploy/grafana-dashboard.json"
	operatingFile = "docs/operating.md"
)

type alertRule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func readText(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func alertRules(t *testing.T) []alertRule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string      `yaml:"name"`
			Rules []alertRule `yaml:"rules"`
		} `yaml:"groups"`
	}
	decoder := yaml.NewDecoder(strings.NewReader(readText(t, rulesFile)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("%s has %d groups", rulesFile, len(file.Groups))
	}
	return file.Groups[0].Rules
}

// panel is what is read of a panel of the dashboard.
type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	Datasource  struct {
		UID string `json:"uid"`
	} `json:"datasource"`
	GridPos struct{ X, Y, W, H int } `json:"gridPos"`
	Targets []struct {
		Expr         string `json:"expr"`
		RefID        string `json:"refId"`
		LegendFormat string `json:"legendFormat"`
	} `json:"targets"`
}

type variable struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	Definition string `json:"definition"`
	Query      any    `json:"query"`
}

type dashboard struct {
	Title         string `json:"title"`
	UID           string `json:"uid"`
	SchemaVersion int    `json:"schemaVersion"`
	Templating    struct {
		List []variable `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(readText(t, dashboardFile)), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// withoutVariables puts something in the place of the dashboard's variables.
func withoutVariables(expr string) string {
	return strings.NewReplacer("$__rate_interval", "5m", `"$instance"`, `".*"`).Replace(expr)
}

// series are the series that a module shows: by name the values of each label.
type series map[string]map[string][]string

func everySeries(t *testing.T) series {
	t.Helper()
	all := make(series)
	for _, family := range everyMetric(t) {
		labels := map[string][]string{"job": nil, "instance": nil}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = append(labels[label.GetName()], label.GetValue())
			}
		}
		if family.GetType() != dto.MetricType_HISTOGRAM {
			all[family.GetName()] = labels
			continue
		}
		all[family.GetName()+"_sum"], all[family.GetName()+"_count"] = labels, labels
		all[family.GetName()+"_bucket"] = map[string][]string{"job": nil, "instance": nil, "le": nil}
	}
	all["up"] = map[string][]string{"job": nil, "instance": nil} // of Prometheus itself
	return all
}

// faults returns what is wrong with an expression, and the metrics that it is made of.
func (all series) faults(expr string) (faults, metrics []string) {
	parsed, err := metricsql.Parse(expr)
	if err != nil {
		return []string{err.Error()}, nil
	}
	labels := map[string]bool{}
	var grouped []string
	metricsql.VisitAll(parsed, func(e metricsql.Expr) {
		switch e := e.(type) {
		case *metricsql.MetricExpr:
			name, found := all.selected(e)
			metrics = append(metrics, name)
			faults = append(faults, found...)
			for label := range all[name] {
				labels[label] = true
			}
		case *metricsql.AggrFuncExpr:
			grouped = append(grouped, e.Modifier.Args...)
		case *metricsql.BinaryOpExpr:
			grouped = append(grouped, e.GroupModifier.Args...)
		}
	})
	for _, label := range grouped {
		if !labels[label] {
			faults = append(faults, "there is no label "+label)
		}
	}
	if len(metrics) == 0 {
		faults = append(faults, "it asks for no metric")
	}
	return faults, metrics
}

// selected returns the metric of a selector, and what is wrong with it.
func (all series) selected(e *metricsql.MetricExpr) (name string, faults []string) {
	for _, filters := range e.LabelFilterss {
		for _, f := range filters {
			if f.Label == "__name__" {
				name = f.Value
				if _, known := all[name]; !known {
					faults = append(faults, "there is no metric "+name)
				}
				continue
			}
			values, known := all[name][f.Label]
			if !known {
				faults = append(faults, fmt.Sprintf("%s has no label %s", name, f.Label))
			}
			if values == nil {
				continue // the scraper's own
			}
			wanted := []string{f.Value}
			if f.IsRegexp {
				wanted = strings.Split(f.Value, "|")
			}
			for _, value := range wanted {
				pattern := regexp.QuoteMeta(value)
				if f.IsRegexp {
					pattern = value
				}
				if !slices.ContainsFunc(values, regexp.MustCompile("^(?:"+pattern+")$").MatchString) {
					faults = append(faults, fmt.Sprintf("%s has no %s %q", name, f.Label, value))
				}
			}
		}
	}
	return name, faults
}

func TestAlertsAskForWhatExists(t *testing.T) {
	all := everySeries(t)
	for _, rule := range alertRules(t) {
		faults, metrics := all.faults(rule.Expr)
		for _, fault := range faults {
			t.Errorf("%s: %s", rule.Alert, fault)
		}
		known := map[string]bool{}
		for _, name := range metrics {
			for label := range all[name] {
				known[label] = true
			}
		}
		for _, text := range rule.Annotations {
			for _, label := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
				if !known[label[1]] {
					t.Errorf("%s: its text names the label %s", rule.Alert, label[1])
				}
			}
		}
	}
}

func TestDashboardAsksForWhatExists(t *testing.T) {
	all := everySeries(t)
	d := readDashboard(t)
	shown := map[string]bool{}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			faults, metrics := all.faults(withoutVariables(target.Expr))
			for _, fault := range faults {
				t.Errorf("%s: %s", p.Title, fault)
			}
			for _, name := range metrics {
				shown[name] = true
			}
			for _, label := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if !regexp.MustCompile(`by \([^)]*\b` + label[1] + `\b`).MatchString(target.Expr) {
					t.Errorf("%s: the legend names %s, by which it is not summed up", p.Title, label[1])
				}
			}
		}
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		names := regexp.MustCompile(`dendrite_\w+`).FindAllString(v.Definition, -1)
		if len(names) != 1 || all[names[0]] == nil {
			t.Errorf("the variable %s asks for %v", v.Name, names)
		}
	}
	for _, family := range everyMetric(t) {
		name := family.GetName()
		if !shown[name] && !shown[name+"_bucket"] && !shown[name+"_sum"] {
			t.Errorf("no panel shows %s", name)
		}
	}
}

// A look that failed takes the gauges away until the next one, and must not end an alert.
func TestAlertsOutliveAFailedLook(t *testing.T) {
	descriptions := make(chan *prometheus.Desc, 100)
	newGauges().Describe(descriptions)
	close(descriptions)
	asked := 0
	for desc := range descriptions {
		name := regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(desc.String())[1]
		if strings.HasSuffix(name, "_last_sample_timestamp_seconds") {
			continue // it stays
		}
		for _, rule := range alertRules(t) {
			all := len(regexp.MustCompile(name+`\b`).FindAllString(rule.Expr, -1))
			bridged := len(regexp.MustCompile(`last_over_time\(`+name+`({[^}]*})?\[30m\]`).FindAllString(rule.Expr, -1))
			if asked += all; all != bridged {
				t.Errorf("%s asks %d times for %s, %d times for its last value", rule.Alert, all, name, bridged)
			}
		}
	}
	if asked < 5 {
		t.Errorf("only %d gauges were found", asked)
	}
}

// The checks of the expressions see what they are for.
func TestFaultsOfExpressionsAreSeen(t *testing.T) {
	all := everySeries(t)
	for expr, want := range map[string]string{
		`sum(rate(dendrite_todevice_no_such_total[5m]))`:                   "there is no metric dendrite_todevice_no_such_total",
		`dendrite_todevice_delivery_delay_seconds`:                         "there is no metric dendrite_todevice_delivery_delay_seconds",
		`dendrite_todevice_queues{user="@a:b"}`:                            "dendrite_todevice_queues has no label user",
		`dendrite_todevice_outbox_edus{state="lost"}`:                      `dendrite_todevice_outbox_edus has no state "lost"`,
		`dendrite_todevice_requests_total{code=~"5..|6.."}`:                `dendrite_todevice_requests_total has no code "6.."`,
		`dendrite_todevice_edus_received_total{outcome!="taken"}`:          `dendrite_todevice_edus_received_total has no outcome "taken"`,
		`sum by (reason) (rate(dendrite_todevice_edus_stored_total[5m]))`:  "there is no label reason",
		`up and on (rank) dendrite_todevice_queues`:                        "there is no label rank",
		`sum(rate(dendrite_todevice_queues[5m])`:                           "",
		`1 > 0`:                                                            "it asks for no metric",
		`sum by (le) (rate(dendrite_todevice_commit_messages_bucket[5m]))`: "none",
	} {
		switch faults, _ := all.faults(expr); {
		case want == "none":
			if len(faults) > 0 {
				t.Errorf("%s: %v", expr, faults)
			}
		case len(faults) != 1 || !strings.Contains(faults[0], want):
			t.Errorf("%s: got the faults %q, want %q", expr, faults, want)
		}
	}
}

// A dashboard is imported by hand: what Grafana would silently show wrong is seen here.
func TestDashboardIsImportable(t *testing.T) {
	d := readDashboard(t)
	if d.Title == "" || d.UID == "" || d.SchemaVersion == 0 {
		t.Errorf("the dashboard has the title %q, uid %q, version %d", d.Title, d.UID, d.SchemaVersion)
	}
	if !slices.ContainsFunc(d.Templating.List, func(v variable) bool {
		return v.Name == "datasource" && v.Type == "datasource" && v.Query == "prometheus"
	}) {
		t.Error("the data source can't be chosen")
	}
	ids := map[int]bool{}
	cells := map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("the panel %q has the ID %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%s: is at %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" {
					t.Fatalf("%q lies over %q", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: has the description %q, the data source %s and %d targets", p.Title, p.Description, p.Datasource.UID, len(p.Targets))
		}
		refs := map[string]bool{}
		for _, target := range p.Targets {
			if refs[target.RefID] || !strings.Contains(target.Expr, `instance=~"$instance"`) {
				t.Errorf("%s %s: is there twice, or is not of the chosen server: %s", p.Title, target.RefID, target.Expr)
			}
			refs[target.RefID] = true
		}
	}
}

// Every alert tells what to do, and is tested: once firing and once not.
func TestAlertsAreDescribedAndTested(t *testing.T) {
	var tests struct {
		Tests []struct {
			Name   string `yaml:"name"`
			Alerts []struct {
				Name string `yaml:"alertname"`
				Want []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	if err := yaml.Unmarshal([]byte(readText(t, rulesTestFile)), &tests); err != nil {
		t.Fatal(err)
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, alert := range test.Alerts {
			fires[alert.Name] = fires[alert.Name] || len(alert.Want) > 0
			silent[alert.Name] = silent[alert.Name] || len(alert.Want) == 0
		}
	}
	sections := alertSections(t)
	names := map[string]bool{}
	for _, rule := range alertRules(t) {
		if names[rule.Alert] {
			t.Errorf("%s is there twice", rule.Alert)
		}
		names[rule.Alert] = true
		if !fires[rule.Alert] || !silent[rule.Alert] {
			t.Errorf("%s is tested firing: %v, and not firing: %v", rule.Alert, fires[rule.Alert], silent[rule.Alert])
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, rule.Labels["severity"]) {
			t.Errorf("%s has the severity %q", rule.Alert, rule.Labels["severity"])
		}
		for _, key := range []string{"summary", "description"} {
			if !strings.HasSuffix(strings.TrimSpace(rule.Annotations[key]), ".") {
				t.Errorf("%s: its %s is no sentence: %q", rule.Alert, key, rule.Annotations[key])
			}
		}
		if want := operatingFile + "#" + strings.ToLower(rule.Alert); rule.Annotations["runbook_url"] != want {
			t.Errorf("%s: its runbook is %q, want %q", rule.Alert, rule.Annotations["runbook_url"], want)
		}
		if !slices.Contains(sections, rule.Alert) {
			t.Errorf("%s has no section %s", operatingFile, rule.Alert)
		}
	}
	for _, section := range sections {
		if !names[section] {
			t.Errorf("%s has a section on %s, which is no alert", operatingFile, section)
		}
	}
}

func alertSections(t *testing.T) (names []string) {
	t.Helper()
	for _, heading := range regexp.MustCompile(`(?m)^### (ToDevice\w+)$`).FindAllStringSubmatch(readText(t, operatingFile), -1) {
		names = append(names, heading[1])
	}
	return names
}
