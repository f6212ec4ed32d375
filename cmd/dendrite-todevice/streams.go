//go:build !announcements

package main

import (
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/process"

	"github.com/matrix-org/dendrite/todevicemodule/host"
)

// addStreams is where further streams go into /sync: docs/stream-positions.md. There are none.
func addStreams(*host.Dendrite, *process.ProcessContext, *setup.Monolith, *sqlutil.Connections, httputil.Routers) error {
	return nil
}
