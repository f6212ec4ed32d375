// Package hosttest holds a homeserver that the module is compiled into against the contract of both (todevicemodule.Host), and against
// what clients and other servers are promised. A maintainer hands it a function that starts the homeserver; everything else goes through its
// client-server and server-server API, with faults between the module and the homeserver.
package hosttest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
)

// Start starts the homeserver under test with the module in it. It returns once both APIs are served; the context is that of the start alone. It is
// called again, with the same setup, for what a homeserver that was stopped must still know. While a homeserver runs it may be called with the same database and
// everything else new: that start is to fail with storage.ErrLocked.
//
// The homeserver lets anybody register (m.login.dummy), guests as well, and sign in with a password, has no rate limits of its own, takes any
// certificate of other servers, and talks to servers on this machine.
//
// The checks call, below /_matrix/client/v3, POST /register (also with kind=guest), /login, /logout, /logout/all, /delete_devices,
// /account/password and /account/deactivate, DELETE /devices/{deviceId}, GET /sync with since and timeout, and PUT /sendToDevice, which r0 and
// unstable have too. They give a password where a request is answered 401 (user-interactive authentication). POST /keys/query may be
// missing. Other servers ask for /_matrix/key/v2/server, and send transactions; they answer GET /_matrix/federation/v1/version and
// /user/devices/{userId}.
type Start func(ctx context.Context, setup Setup) (*Server, error)

// Setup is what a homeserver is started with.
type Setup struct {
	// ServerName is the name that the homeserver is to have, "localhost:PORT". Its server-server API is to be served there with TLS. It may
	// have other names beside it, but not localhost without a port, or with another one.
	ServerName string
	// Dir is a directory for what the homeserver keeps in files. It is empty at the first start.
	Dir string
	// Database is the connection string of a database that nobody else uses, empty at the first start: a postgres:// URL or a file: URI of
	// SQLite. The module's messages are to be kept there; what else is is the homeserver's affair.
	Database string
	// Config is to be passed to todevicemodule.New, but for its Database, which is the homeserver's affair.
	Config todevicemodule.Config
	// Wrap puts faults between the module and the homeserver: todevicemodule.New is to be passed what it returns in the place of the homeserver.
	Wrap func(todevicemodule.Host) todevicemodule.Host
}

// Server is a homeserver that runs.
type Server struct {
	// ClientURL is the base URL of the client-server API, and FederationURL that of the server-server API, such as https://localhost:PORT.
	ClientURL, FederationURL string
	// Module is what todevicemodule.New returned.
	Module *todevicemodule.Module
	// Stop ends the homeserver as its operator does, and returns once it has ended. It is called once.
	Stop func(ctx context.Context) error
}

// Kit is what the tests need of a maintainer.
type Kit struct {
	Start Start
	// NewDatabase returns the connection string of a new database; see Setup.Database. It is called at the most once for each promise.
	NewDatabase func() (string, error)
	// TempDir returns a new directory.
	TempDir func() (string, error)
	// Patience is how long the homeserver may take for what it is to do at once. Only what is broken takes as long. Below 15s a homeserver
	// may fail that keeps its promises: it leaves other servers alone for a while, and may be told to wait itself. Default: 30s.
	Patience time.Duration
}

// TestHost holds a homeserver against every promise, and returns what it broke, each as a BrokenError. Test does the same in subtests.
func TestHost(ctx context.Context, kit Kit) error {
	s := &series{kit: kit}
	var errs []error
	for _, p := range Promises() {
		errs = append(errs, s.check(ctx, p))
	}
	return errors.Join(append(errs, s.end(ctx))...)
}

// Test holds a homeserver against each promise in a subtest of its name.
func Test(t *testing.T, kit Kit) {
	t.Helper()
	s := &series{kit: kit}
	for _, p := range Promises() {
		t.Run(p.Name, func(t *testing.T) {
			if err := s.check(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
	if err := s.end(t.Context()); err != nil {
		t.Error(err)
	}
}

// BrokenError says which promise was broken, and how that was seen.
type BrokenError struct {
	Promise Promise
	Err     error
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("%s: %v (the promise: %s)", e.Promise.Name, e.Err, e.Promise.Text)
}

func (e *BrokenError) Unwrap() error { return e.Err }
