package todevicemodule

import (
	"maps"
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
