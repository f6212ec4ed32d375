package host

import (
	"path/filepath"
	"testing"

	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/process"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/matrix-org/dendrite/todevicemodule"
)

// The module shows its metrics where the host shows its own.
func TestMetricsFollowTheHosts(t *testing.T) {
	for _, enabled := range []bool{true, false} {
		cfg := &config.Dendrite{}
		cfg.Global.Metrics.Enabled = enabled
		cfg.SyncAPI.Database.ConnectionString = config.DataSource("file:" + filepath.Join(t.TempDir(), "syncapi.db"))
		section := todevicemodule.DefaultConfig()
		section.Enabled = true
		processCtx := process.NewProcessContext()
		registry := prometheus.NewRegistry()
		d, err := Start(processCtx, cfg, section, sqlutil.NewConnectionManager(processCtx, cfg.Global.DatabaseOptions), registry)
		if err != nil {
			t.Fatal(err)
		}
		families, err := registry.Gather()
		if err != nil || (len(families) > 0) != enabled {
			t.Errorf("metrics enabled: %v; there are %d, %v", enabled, len(families), err)
		}
		d.Stop()
		processCtx.ShutdownDendrite()
		processCtx.WaitForComponentsToFinish()
	}
}
