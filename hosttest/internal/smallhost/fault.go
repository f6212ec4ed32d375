package smallhost

import (
	"net/http"

	"github.com/matrix-org/dendrite/todevicemodule"
)

// Fault is something broken where the host and the module meet. The zero Fault breaks nothing.
type Fault struct {
	// Host stands in the place of what the host is to the module.
	Host func(todevicemodule.Host) todevicemodule.Host
	// Module stands in the place of the module, of which the host calls what it calls.
	module func(*host, module) module
	// Calls stands in the place of what the module calls, behind whatever watches it: a fault of the module's.
	Calls func(todevicemodule.Host) todevicemodule.Host
	// routes stand in the place of the client-server API.
	routes func(*host, http.Handler) http.Handler
}

func (f Fault) ofHost(h *host) todevicemodule.Host {
	if f.Host == nil {
		return h
	}
	return f.Host(h)
}

func (f Fault) ofModule(watched todevicemodule.Host) todevicemodule.Host {
	if f.Calls == nil {
		return watched
	}
	return f.Calls(watched)
}

func (f Fault) toModule(h *host, m module) module {
	if f.module == nil {
		return m
	}
	return f.module(h, m)
}

func (f Fault) ofRoutes(h *host, routes http.Handler) http.Handler {
	if f.routes == nil {
		return routes
	}
	return f.routes(h, routes)
}
