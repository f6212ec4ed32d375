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
	build, _ := debug.ReadBuildInfo()
	started, version := time.Now(), moduleVersion(build)
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

// modulePath is where Go's build information has the version under. The commands for further hosts are modules of the same repository, whose
// paths end alike.
const (
	modulePath = "github.com/matrix-org/dendrite" + moduleName
	moduleName = "/todevicemodule"
)

// moduleVersion returns the module's version, or an empty string if Go knows of none, as for a build from a checkout without its history.
func moduleVersion(build *debug.BuildInfo) string {
	if build == nil {
		return ""
	}
	version := ""
	if strings.HasSuffix(build.Main.Path, moduleName) {
		version = build.Main.Version
	}
	for _, module := range build.Deps {
		if module.Path != modulePath {
			continue
		}
		if replaced := module.Replace; replaced == nil {
			version = module.Version
		} else if replaced.Version != "" { // and not a directory, for which go.mod has any version
			version = replaced.Version
		}
	}
	return strings.TrimPrefix(version, "(devel)")
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
