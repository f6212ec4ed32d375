// Package smallhost is the least homeserver that keeps every promise of the contract with the module (todevicemodule.Host): accounts, devices,
// send-to-device messages and their /sync, here and between servers. It has no rooms. Whoever brings the module to a homeserver of their own may read
// it as an example, in this order: contract.go, client.go, devices.go, sync.go, inbound.go, outbound.go.
//
// It is for tests: it keeps passwords as they are, believes every certificate, and has no limits of its own.
package smallhost

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest"
)

// host is one running homeserver.
type host struct {
	name     spec.ServerName
	database string // the connection string
	log      *logrus.Entry
	logFile  *os.File
	accounts *accounts
	module   module

	db *sql.DB // the module's messages

	waiting waiting // /sync requests

	federation fclient.FederationClient
	keys       gomatrixserverlib.JSONVerifier // of other servers
	queues     queues
	remote     remoteDevices

	servers  []*server
	running  context.Context // ends when the host stops
	end      context.CancelFunc
	stopOnce sync.Once
	stopErr  error
}

// Start starts the homeserver; it is a hosttest.Start.
func Start(ctx context.Context, setup hosttest.Setup) (*hosttest.Server, error) {
	return start(ctx, setup, Fault{})
}

func start(ctx context.Context, setup hosttest.Setup, fault Fault) (_ *hosttest.Server, err error) {
	h := &host{name: spec.ServerName(setup.ServerName), database: setup.Database}
	h.running, h.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, h.stop(ctx))
		}
	}()
	if h.logFile, err = os.OpenFile(filepath.Join(setup.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	logger := logrus.New()
	logger.SetOutput(h.logFile)
	h.log = logrus.NewEntry(logger)
	if h.accounts, err = openAccounts(filepath.Join(setup.Dir, "accounts.json")); err != nil {
		return nil, err
	}
	m, err := todevicemodule.New(setup.Config, fault.ofModule(setup.Wrap(fault.ofHost(h))), nil, h.log)
	if err != nil {
		return nil, err
	}
	h.module = fault.toModule(h, m)
	h.startFederation()
	if err = h.module.Start(ctx); err != nil { // before anything is served: the first position is asked for then
		return nil, err
	}
	clientURL, federationURL, err := h.serve(fault)
	if err != nil {
		return nil, err
	}
	return &hosttest.Server{ClientURL: clientURL, FederationURL: federationURL, Module: m, Stop: h.stop}, nil
}

// stop takes no more requests and lets those under way end, then stops the module, and closes the database last.
func (h *host) stop(ctx context.Context) error {
	h.stopOnce.Do(func() {
		h.end()
		for _, s := range h.servers {
			h.stopErr = errors.Join(h.stopErr, s.stop(ctx))
		}
		if h.module != nil {
			h.stopErr = errors.Join(h.stopErr, h.module.Stop(ctx))
		}
		h.queues.tasks.Wait() // the module has given their transactions up
		if h.db != nil {
			h.stopErr = errors.Join(h.stopErr, h.db.Close())
		}
		if h.logFile != nil {
			h.stopErr = errors.Join(h.stopErr, h.logFile.Close())
		}
	})
	return h.stopErr
}
