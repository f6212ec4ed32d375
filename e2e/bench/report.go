package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/e2e"
)

// report is the file with everything that was measured.
type report struct {
	Started time.Time       `json:"started"`
	Took    string          `json:"took"`
	Short   bool            `json:"short"`
	Machine machine         `json:"machine"`
	Config  map[string]any  `json:"config"`
	Results []judged        `json:"results"`
	Curves  []*curve        `json:"delay_by_offered_rate,omitempty"`
	Backlog []*backlogCosts `json:"cost_by_backlog,omitempty"`
	Failed  []string        `json:"failed,omitempty"`
}

// judged is a result with what follows from it. A part that is not known is left out.
type judged struct {
	*result
	Ratio          *float64 `json:"ratio,omitempty"`
	RatioToSynapse *float64 `json:"ratio_to_synapse,omitempty"`
	Met            *bool    `json:"met,omitempty"`
}

func judge(r *result) judged {
	j := judged{result: r}
	if times, known := r.better(unmodified); known {
		j.Ratio = &times
	}
	if times, known := r.better(synapse); known {
		j.RatioToSynapse = &times
	}
	if met, known := r.met(); known {
		j.Met = &met
	}
	return j
}

func (b *bench) report(results []*result) report {
	r := report{
		Started: b.progress.start, Took: time.Since(b.progress.start).Round(time.Second).String(), Short: b.short,
		Machine: thisMachine(), Curves: b.curves, Backlog: b.backlogCosts, Failed: b.failures,
		Config: map[string]any{
			"postgresql_max_open_conns": e2e.MaxOpenConns, "postgresql_max_idle_conns": maxIdleConns, "log_level": logLevel,
			"to_device": moduleConfig, "content_bytes": contentBytes, "rounds": b.rounds, "warm_up": b.warmUp.String(), "length": b.length.String(),
			"window": b.window, "federation_requests": federationRequests, "profiled": b.profiles != "",
		},
	}
	for _, each := range results {
		r.Results = append(r.Results, judge(each))
	}
	return r
}

// write returns the path of the file.
func (r report) write(dir string) (string, error) {
	path := filepath.Join(dir, "bench.json")
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return path, err
	}
	return path, os.WriteFile(path, append(data, '\n'), 0o644)
}
