package todevicemodule

import (
	"maps"
	"runtime/debug"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestCountersForAdministrators(t *testing.T) {
	registry := prometheus.NewRegistry()
	plain := prometheus.NewCounter(prometheus.CounterOpts{Name: "plain_total", Help: "Plain."})
	labelled := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "labelled_total", Help: "Labelled."}, []string{"code", "kind"})
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "gauge", Help: "None of them."})
	registry.MustRegister(plain, labelled, gauge)
	plain.Add(3)
	labelled.WithLabelValues("200", "a").Inc()
	labelled.WithLabelValues("500", "b").Add(2)
	want := map[string]float64{"plain_total": 3, `labelled_total{code="200",kind="a"}`: 1, `labelled_total{code="500",kind="b"}`: 2}
	if got := counters(registry); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestModuleVersion(t *testing.T) {
	const second = "github.com/element-hq/dendrite/todevicemodule"
	required := func(version string, replace *debug.Module) []*debug.Module {
		return []*debug.Module{{Path: "golang.org/x/sync", Version: "v0.1.0"}, {Path: modulePath, Version: version, Replace: replace}}
	}
	directory := &debug.Module{Path: "../../"}
	for name, c := range map[string]struct {
		build *debug.BuildInfo
		want  string
	}{
		"nothing is known":        {nil, ""},
		"a checkout":              {&debug.BuildInfo{Main: debug.Module{Path: modulePath, Version: "(devel)"}}, ""},
		"a commit":                {&debug.BuildInfo{Main: debug.Module{Path: modulePath, Version: "v1.2.0"}}, "v1.2.0"},
		"another host's checkout": {&debug.BuildInfo{Main: debug.Module{Path: second, Version: "(devel)"}, Deps: required("v0.0.0", directory)}, ""},
		"another host's commit":   {&debug.BuildInfo{Main: debug.Module{Path: second, Version: "v1.2.0"}, Deps: required("v0.0.0", directory)}, "v1.2.0"},
		"a dependency":            {&debug.BuildInfo{Main: debug.Module{Path: "example.org/fork", Version: "v3.0.0"}, Deps: required("v1.2.0", nil)}, "v1.2.0"},
		"a fork of the module": {
			&debug.BuildInfo{Deps: required("v1.2.0", &debug.Module{Path: "example.org/todevicemodule", Version: "v1.3.0"})}, "v1.3.0",
		},
		"a directory of a fork": {&debug.BuildInfo{Main: debug.Module{Path: "example.org/fork", Version: "v3.0.0"}, Deps: required("v0.0.0", directory)}, ""},
	} {
		if got := moduleVersion(c.build); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}
