// Package smallhost is the least homeserver that keeps every promise of the contract with the module (todevicemodule.Host): accounts,
// devices, send-to-device messages and their /sync, here and between servers. It has no rooms. Whoever brings the module to a homeserver of
// their own may read it as an example, in this order: contract.go, client.go, sync.go, devices.go, inbound.go, outbound.go.
//
// It is for tests: it keeps passwords as they are, believes every certificate, and has no limits of its own. broken.go and fault*.go break
// something on purpose, where it and the module meet.
package smallhost

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"

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
	module   todevicemodule.Calls

	db *sql.DB // the module's messages

	waiting waiting // /sync requests

	federation fclient.FederationClient
	keys       gomatrixserverlib.JSONVerifier // of other servers
	queues     queues
	remote     remoteDevices

	servers []*server
	running context.Context // ends when the host stops
	end     context.CancelFunc
}

// Start starts the homeserver; it is a hosttest.Start.
func Start(ctx context.Context, setup hosttest.Setup) (*hosttest.Server, error) {
	return start(ctx, setup, func(*host, *broken) {})
}

// start starts a homeserver of which something may be broken on purpose, where it and the module meet.
func start(ctx context.Context, setup hosttest.Setup, breaks func(*host, *broken)) (_ *hosttest.Server, err error) {
	h := &host{name: spec.ServerName(setup.ServerName), database: setup.Database}
	if h.logFile, err = os.OpenFile(filepath.Join(setup.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	logger := logrus.New()
	logger.SetOutput(h.logFile)
	h.log = logrus.NewEntry(logger)
	h.running, h.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, h.stop(ctx))
		}
	}()
	if h.accounts, err = openAccounts(filepath.Join(setup.Dir, "accounts.json")); err != nil {
		return nil, err
	}
	h.startFederation()
	between := newBroken(h, setup.Wrap, breaks)
	m, err := todevicemodule.New(setup.Config, &between.asks, nil, h.log)
	if err != nil {
		return nil, err
	}
	h.module = between.around(m)
	if err = h.module.Start(ctx); err != nil { // before anything is served: the first position is asked for then
		return nil, err
	}
	clientURL, federationURL, err := h.serve(between.routes(h.clientRoutes()))
	if err != nil {
		return nil, err
	}
	return &hosttest.Server{ClientURL: clientURL, FederationURL: federationURL, Module: m, Stop: h.stop}, nil
}

// stop takes no more requests and lets those under way end, then stops the module, and closes the database last.
func (h *host) stop(ctx context.Context) (err error) {
	h.end()
	for _, s := range h.servers {
		s.stop(ctx)
	}
	if h.module != nil {
		if err := h.module.Stop(ctx); err != nil {
			h.log.WithError(err).Warn("the module did not end cleanly") // and has lost nothing all the same
		}
	}
	h.queues.tasks.Wait() // the module has given their transactions up
	if h.db != nil {
		err = h.db.Close()
	}
	return errors.Join(err, h.logFile.Close())
}
