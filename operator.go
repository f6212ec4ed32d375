package todevicemodule

import (
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

// AdminRoutes returns the calls of the admin API. The host serves them below admin.Prefix, or a prefix of its own, to
// administrators alone.
func (m *Module) AdminRoutes() []admin.Route { return m.admin.Routes() }

// newAdmin comes after everything that it shows.
func (m *Module) newAdmin(host Host) (*admin.API, error) {
	own := prometheus.NewRegistry()
	if err := m.metrics.register(own); err != nil {
		return nil, err
	}
	started, version := time.Now(), moduleVersion()
	return admin.New(admin.Options{
		Store:       m.store,
		Outbox:      m.outbox,
		UserDevices: host.UserDevices,
		IsLocal:     host.IsLocalServer,
		Published:   m.writer.Published,
		Purge:       m.cleaner.Purge,
		Find:        m.trace.Find,
		StoredAt:    m.storedAt,
		Info: func() admin.Info {
			return admin.Info{Version: version, Started: started, LastPosition: m.writer.Published(), Counters: counters(own)}
		},
		Log: m.log,
	}), nil
}

// modulePath is where Go's build information has the version under.
const modulePath = "github.com/matrix-org/dendrite/todevicemodule"

func moduleVersion() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	const unknown = "(devel)" // a build from a checkout that Go knows no version of
	for _, module := range append(build.Deps, &build.Main) {
		if module.Path == modulePath && module.Version != unknown {
			return module.Version
		}
	}
	return ""
}

// counters returns the value of each counter by its name and labels.
func counters(from prometheus.Gatherer) map[string]float64 {
	values := make(map[string]float64)
	families, _ := from.Gather() // what could be read
	for _, family := range families {
		if family.GetType() != dto.MetricType_COUNTER {
			continue
		}
		for _, metric := range family.GetMetric() {
			values[family.GetName()+labels(metric)] = metric.GetCounter().GetValue()
		}
	}
	return values
}

func labels(metric *dto.Metric) string {
	pairs := make([]string, 0, len(metric.GetLabel()))
	for _, label := range metric.GetLabel() {
		pairs = append(pairs, label.GetName()+`="`+label.GetValue()+`"`)
	}
	if len(pairs) == 0 {
		return ""
	}
	return "{" + strings.Join(pairs, ",") + "}"
}
