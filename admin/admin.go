// Package admin is the operator's view of the module over HTTP: what waits for whom, what became of it, and the calls to
// purge, retry and discard. docs/openapi.yaml describes every call. No answer has a content in it.
package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Prefix is where the routes are. A host with a prefix of its own may put them elsewhere.
const Prefix = "/_dendrite/admin/toDevice"

// callTimeout bounds every call.
const callTimeout = 30 * time.Second

// Store is what the calls read: a storage.Store has it.
type Store interface {
	Totals(ctx context.Context) (storage.Totals, error)
	Queues(ctx context.Context, order storage.Order, after *storage.Queue, limit int) ([]storage.Queue, error)
	Envelopes(ctx context.Context, device types.Device, after types.Position, limit int) ([]storage.Envelope, error)
	Devices(ctx context.Context, userID string) ([]string, error)
	Lines(ctx context.Context, after string, limit int) ([]storage.Line, error)
	Line(ctx context.Context, destination string) (storage.Line, error)
	Aside(ctx context.Context, destination string, after types.Position, limit int) ([]storage.Refusal, error)
}

// Outbox is what the calls ask of an outbox.Outbox.
type Outbox interface {
	State(destination string) outbox.State
	Retry(ctx context.Context, destination string) (int, error)
	RetryOne(ctx context.Context, destination string, position types.Position) (int, error)
	Discard(ctx context.Context, destination string, position types.Position) ([]storage.Refusal, error)
}

// Info is what a module says of itself.
type Info struct {
	Version      string // empty if it is not known
	Started      time.Time
	LastPosition types.Position
	// Counters has the value of each counter by its name, with its labels as in a Prometheus query.
	Counters map[string]float64
}

// Options are what an API works with. All are required, but for Now.
type Options struct {
	Store  Store
	Outbox Outbox
	// UserDevices returns the IDs of a local user's devices; none for a user that does not exist.
	UserDevices func(ctx context.Context, userID string) ([]string, error)
	IsLocal     func(serverName string) bool
	// Published returns the last position that is stored.
	Published func() types.Position
	// Purge deletes what waits for a device up to a position, and returns how many messages that were.
	Purge func(ctx context.Context, device types.Device, through types.Position) (int, error)
	// StoredAt returns when a waiting message was stored, or false if that is not known.
	StoredAt func(types.Position) (time.Time, bool)
	Find     func(trace.Query) trace.Result
	Info     func() Info
	Log      *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// API is the admin API. It is safe for concurrent use.
type API struct {
	Options
}

// New returns an API.
func New(options Options) *API {
	if options.Now == nil {
		options.Now = time.Now
	}
	return &API{options}
}

// Route is one call. The host answers it with Handle once it knows that the user is an administrator.
type Route struct {
	// Name is unique, and fit for a metric.
	Name   string
	Method string
	// Path follows Prefix. A part in braces stands for one percent-encoded segment.
	Path   string
	handle func(call *call) util.JSONResponse
}

// Handle answers a request. The variables are those of Path, decoded; admin is the user ID of who calls.
func (r Route) Handle(req *http.Request, admin string, variables map[string]string) util.JSONResponse {
	ctx, cancel := context.WithTimeout(req.Context(), callTimeout)
	defer cancel()
	query, err := url.ParseQuery(req.URL.RawQuery)
	return r.handle(&call{Context: ctx, admin: admin, query: query, malformed: err != nil, variables: variables})
}

// Routes returns every call.
func (a *API) Routes() []Route {
	get, post, del := http.MethodGet, http.MethodPost, http.MethodDelete
	return []Route{
		{"todevice_status", get, "/status", a.status},
		{"todevice_queues", get, "/queues", a.queues},
		{"todevice_queue", get, "/queues/{userID}/{deviceID}", a.queue},
		{"todevice_purge_user", del, "/queues/{userID}", a.purgeUser},
		{"todevice_purge_device", del, "/queues/{userID}/{deviceID}", a.purgeDevice},
		{"todevice_outbox", get, "/outbox", a.destinations},
		{"todevice_destination", get, "/outbox/{destination}", a.destination},
		{"todevice_refused", get, "/outbox/{destination}/refused", a.refused},
		{"todevice_retry", post, "/outbox/{destination}/retry", a.retry},
		{"todevice_retry_refused", post, "/outbox/{destination}/refused/{position}/retry", a.retryRefused},
		{"todevice_discard", del, "/outbox/{destination}/refused", a.discard},
		{"todevice_discard_refused", del, "/outbox/{destination}/refused/{position}", a.discardRefused},
		{"todevice_trace", get, "/trace", a.trace},
	}
}

// tell logs what an administrator has done.
func (a *API) tell(c *call, fields logrus.Fields, what string) {
	a.Log.WithFields(fields).WithField("admin", c.admin).Info("to_device: an administrator " + what)
}
