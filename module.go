// Package todevicemodule is Matrix send-to-device messaging for a homeserver that it is compiled
// into: it stores each message once, hands it to each device in order, and deletes it when the
// device has acknowledged it.
package todevicemodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/util"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/handover"
	"github.com/matrix-org/dendrite/todevicemodule/internal/bodies"
	"github.com/matrix-org/dendrite/todevicemodule/internal/limiter"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// stopSending is how long transactions to other servers that are under way may take when the module stops.
const stopSending = 3 * time.Second

// maxSyncBytes bounds the contents in one /sync response, unless it has a single message. The host has a response in memory several times
// while it writes it, and makes as many at once as clients ask for: a hundred messages of 60,000 bytes took 33 MiB each time.
const maxSyncBytes = 1 << 20

// logLimitedEvery is how often the log says of one server that it was told to wait.
const logLimitedEvery = time.Minute

// Module is the send-to-device messaging of one server.
type Module struct {
	log          *logrus.Entry
	store        storage.Store
	directory    *devices.Directory
	handover     *handover.Handover // nil if the host has no queue of its own
	writer       *writer.Writer
	acknowledger *writer.Acknowledger
	janitor      *writer.Janitor
	cleaner      *writer.Cleaner
	sweeper      *writer.Sweeper
	outbox       *outbox.Outbox
	federation   *consumers.Federation
	keyRequests  *consumers.KeyRequests
	reader       *streams.Reader
	route        *routing.SendToDevice
	leftovers    *consumers.Leftovers
	trace        *trace.Ring
	admin        *admin.API
	inbound      *bodies.Room // the bodies of other servers' transactions
	metrics      *metrics
	sampler      *sampler     // nil without metrics
	imported     atomic.Int64 // see lastImported
	running      atomic.Bool
}

// maxEDUBytes bounds an EDU of another server: one with several messages has 64 KiB at the most, and one with a
// single message what a message may have and the IDs around it.
func maxEDUBytes(maxMessageBytes int) int { return max(64<<10, maxMessageBytes) + 64<<10 }

// New puts a module together. The metrics go to registerer; nil means that there are none. Nothing
// runs, and the database is not asked anything, before Start.
func New(config Config, host Host, registerer prometheus.Registerer, log *logrus.Entry) (*Module, error) {
	database, err := host.Store(config.Database)
	if err != nil {
		return nil, fmt.Errorf("opening the database of to_device: %w", err)
	}
	store, err := streams.NewCache(database)
	if err != nil {
		return nil, err
	}
	directory, err := devices.NewDirectory(host)
	if err != nil {
		return nil, err
	}
	m := &Module{log: log, store: store, directory: directory}
	m.metrics = newMetrics(m.storedAt)
	m.trace = trace.New(trace.Options{Capacity: config.TraceRecords, Log: log})
	steps := trace.Tee(m.trace, m.metrics)
	m.outbox = outbox.New(outbox.Options{Store: store, Host: host, Aside: store, Log: log, Observe: m.metrics.observeSent, Trace: steps})
	wake := func(position types.Position, wakeups []writer.Wakeup) {
		host.WakeDevices(position, wakeups)
		m.sweeper.Grown(wakeups)
	}
	writerOptions := writer.Options{
		Store: store, Committed: store.Committed, Wake: wake, Outgoing: m.outbox.Added, Log: log, Observe: m.metrics.observeCommit, Trace: steps,
	}
	foreign, err := host.ForeignQueue(config.Database)
	if err != nil {
		return nil, fmt.Errorf("opening the host's own queue: %w", err)
	}
	if foreign != nil {
		m.handover = handover.New(handover.Options{
			Store: store, Queue: foreign, Log: log, Last: func() types.Position { return m.writer.Published() },
		})
		writerOptions.Prepare = m.handover.Prepare
	}
	m.writer = writer.New(writerOptions)
	m.acknowledger = writer.NewAcknowledger(store, log)
	m.acknowledger.Trace = steps
	m.janitor = writer.NewJanitor(store, log)
	m.cleaner = writer.NewCleaner(writer.CleanerOptions{
		Store: store, Source: host, Directory: directory, Writer: m.writer, Virtual: host.VirtualDevice, Timeout: config.RequestTimeout, StoredAt: m.storedAt,
		Trace: steps, Log: log,
	})
	m.sweeper = writer.NewSweeper(m.cleaner, writer.Bounds{
		Messages: config.Limits.QueueMessages, Bytes: int64(config.Limits.QueueBytes), Age: config.Limits.QueueAge,
	}, log)
	m.reader = &streams.Reader{
		Store: store, Acknowledgements: m.acknowledger, Published: m.writer.Published, Limit: config.SyncLimit, Bytes: maxSyncBytes,
		Trace: steps,
	}
	keyRequestRate, err := limiter.New[types.Device](float64(config.Limits.KeyRequestsPerSecond), config.Limits.KeyRequestsBurst)
	if err != nil {
		return nil, err
	}
	// One of its own: names that another server invents are not to push out this server's devices.
	remoteKeyRequestRate, err := limiter.New[string](float64(config.Limits.KeyRequestsPerSecond), config.Limits.KeyRequestsBurst)
	if err != nil {
		return nil, err
	}
	origins, err := limiter.New[string](float64(config.Limits.OriginEDUsPerSecond), config.Limits.OriginEDUsBurst)
	if err != nil {
		return nil, err
	}
	logLimited, err := limiter.New[string](1/logLimitedEvery.Seconds(), 1)
	if err != nil {
		return nil, err
	}
	// One each: other servers are not to take the room of this server's users.
	own := bodies.NewRoom(int64(config.Limits.BodyBytes), config.RequestTimeout)
	own.Refused = func() { m.metrics.observeRefusedBody(fromClient) }
	m.inbound = bodies.NewRoom(int64(config.Limits.BodyBytes), config.RequestTimeout)
	m.inbound.Refused = func() { m.metrics.observeRefusedBody(fromFederation) }
	sender := &writer.Sender{Directory: directory, Writer: m.writer}
	m.route = &routing.SendToDevice{
		Sender:      sender,
		IsLocal:     host.IsLocalServer,
		Federates:   host.Federates(),
		Limits:      routing.Limits{MessageBytes: config.MaxMessageBytes, RequestBytes: config.MaxRequestBytes},
		Bodies:      own,
		KeyRequests: keyRequestRate,
		NoneDeleted: directory.NoneDeleted,
		Remember:    config.TransactionRetention,
		Timeout:     config.RequestTimeout,
		Trace:       steps,
		Log:         log,
	}
	m.keyRequests = consumers.NewKeyRequests(host.IsLocalServer, host.MarkDeviceListStale, log)
	m.keyRequests.Observe = m.metrics.observeKeyRequest
	m.leftovers = &consumers.Leftovers{Sender: sender, IsLocal: host.IsLocalServer, KeyRequest: m.keyRequests.Check, Trace: steps, Log: log}
	m.federation = &consumers.Federation{
		Sender:         sender,
		IsLocal:        host.IsLocalServer,
		MaxEDUBytes:    maxEDUBytes(config.MaxMessageBytes),
		Remember:       config.MessageIDRetention,
		Timeout:        config.RequestTimeout,
		Origins:        origins,
		LogLimited:     logLimited,
		KeyRequestRate: remoteKeyRequestRate,
		KeyRequest:     m.keyRequests.Check,
		Observe:        m.metrics.observeReceived,
		Trace:          steps,
		Log:            log,
	}
	if registerer != nil {
		directory.Observe = m.metrics.observeLookups
		store.Observe = m.metrics.observeRead
		m.sampler = newSampler(store, m.lastImported, m.metrics, log)
		m.metrics.live("writer_queue_requests", "Requests that wait for a commit that has not begun.", m.writer.Queued)
		m.metrics.live("body_bytes", "Size of the bodies of requests that are in memory.", func() int { return int(own.Held() + m.inbound.Held()) })
		m.metrics.live("bodies_waiting", "Bodies of requests that wait for room in memory.", func() int { return own.Waiting() + m.inbound.Waiting() })
		m.metrics.live("acknowledgements_pending", "Devices whose acknowledged messages wait for their deletion.", m.acknowledger.Pending)
		m.metrics.live("outbox_destinations", "Servers for which EDUs wait or are to be sent again.", m.outbox.Destinations)
		if err = m.metrics.register(registerer); err != nil {
			return nil, fmt.Errorf("registering the metrics of to_device: %w", err)
		}
	}
	if m.admin, err = m.newAdmin(host); err != nil {
		return nil, err
	}
	return m, nil
}

// Start brings the tables up to date, takes the lock that keeps a second server out and starts
// the module's goroutines. It returns storage.ErrLocked if another server runs on the database.
// It must have returned before the first position is asked for.
func (m *Module) Start(ctx context.Context) error {
	if err := m.store.Migrate(ctx); err != nil {
		return fmt.Errorf("preparing the tables of to_device: %w", err)
	}
	if err := m.writer.Start(ctx); err != nil {
		return fmt.Errorf("starting to_device: %w", err)
	}
	imported, err := m.store.Imported(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("starting to_device: %w", err), m.writer.Stop(ctx))
	}
	m.imported.Store(int64(imported))
	if m.handover != nil {
		if err := m.handover.Start(ctx); err != nil {
			return errors.Join(fmt.Errorf("starting to_device: %w", err), m.writer.Stop(ctx))
		}
	}
	if err := m.outbox.Start(ctx); err != nil {
		m.stopHandover(ctx)
		return errors.Join(fmt.Errorf("starting to_device: %w", err), m.writer.Stop(ctx))
	}
	m.acknowledger.Start(ctx)
	m.janitor.Start(ctx)
	m.sweeper.Start(ctx)
	m.keyRequests.Start(ctx)
	if m.sampler != nil {
		m.sampler.start(ctx)
	}
	m.running.Store(true)
	return nil
}

// Stop stores what was taken, deletes what was acknowledged, and ends the module's goroutines. Where
// the database does not allow that before ctx ends, it gives up. It does nothing unless the module
// runs.
func (m *Module) Stop(ctx context.Context) error {
	if !m.running.CompareAndSwap(true, false) {
		return nil
	}
	if m.sampler != nil {
		m.sampler.stop()
	}
	m.keyRequests.Stop()
	m.stopHandover(ctx)
	m.sweeper.Stop()
	m.janitor.Stop()
	m.acknowledger.Stop(ctx)
	sending, cancel := context.WithTimeout(ctx, stopSending)
	defer cancel()
	return errors.Join(m.outbox.Stop(sending), m.writer.Stop(ctx))
}

func (m *Module) stopHandover(ctx context.Context) {
	if m.handover != nil {
		m.handover.Stop(ctx)
	}
}

// lastImported returns the position up to and including which the positions of messages may be the host's own.
func (m *Module) lastImported() types.Position { return types.Position(m.imported.Load()) }

// storedAt returns when a message was stored, or false if that is not known, since the host may have given it its position.
func (m *Module) storedAt(position types.Position) (time.Time, bool) {
	if position <= m.lastImported() {
		return time.Time{}, false
	}
	return position.Time(), true
}

// SendToDevice answers PUT /sendToDevice/{eventType}/{txnId} of an authenticated device; see
// routing.SendToDevice.
func (m *Module) SendToDevice(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
	res := m.route.Handle(req, device, eventType, transactionID)
	m.metrics.observeRequest(res.Code)
	return res
}

// Receive stores entries of the host's own stream, together; see consumers.Leftovers.
func (m *Module) Receive(ctx context.Context, entries ...consumers.Entry) error {
	return m.leftovers.Receive(ctx, entries...)
}

// HoldBody replaces the body of another server's request, which may have so many bytes, and so many of nesting, by one that is whole and in
// memory, within the bound that those of all servers have together. Otherwise it returns the answer to the request. What is held is to be
// released once the request is answered.
func (m *Module) HoldBody(req *http.Request, limit int, mostNesting int64) (release func(), refusal *util.JSONResponse) {
	body, err := m.inbound.Read(req.Context(), req.Body, req.ContentLength, limit)
	if err != nil {
		return nil, routing.BodyError(err, fmt.Sprintf("A transaction may have %d bytes. Send fewer PDUs and EDUs at once.", limit))
	}
	var nesting types.Nesting
	body.Each(nesting.Add)
	if nesting.Bytes() > mostNesting {
		body.Release()
		return nil, routing.TooDeep()
	}
	req.Body = io.NopCloser(body.Reader())
	return body.Release, nil
}

// ReceiveEDUs stores what the m.direct_to_device EDUs of one transaction from another server carry; see
// consumers.Federation.
func (m *Module) ReceiveEDUs(ctx context.Context, origin string, contents []json.RawMessage) error {
	err := m.federation.Receive(ctx, origin, contents)
	m.metrics.observeInbound(err)
	return err
}

// SendTransaction sends a transaction of the host's to another server, and with it what waits for that
// server; see outbox.Outbox.
func (m *Module) SendTransaction(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error {
	return m.outbox.Send(ctx, t, deliver)
}

// RemoteSeen is to be called when another server sends a request, authenticated or not. It returns at once.
func (m *Module) RemoteSeen(serverName string) { m.outbox.Seen(serverName) }

// CreateDevice runs create, which is to create a device of a local user, once nothing is left of an earlier device of the
// same ID; see writer.Cleaner.
func (m *Module) CreateDevice(ctx context.Context, userID, deviceID string, create func() error) error {
	return m.cleaner.CreateDevice(ctx, userID, deviceID, create)
}

// DeleteDevices runs remove, which is to delete devices of a local user. When it returns nil nothing is kept for those that
// do not exist any more; see writer.Cleaner.
func (m *Module) DeleteDevices(ctx context.Context, userID string, remove func() error) error {
	return m.cleaner.DeleteDevices(ctx, userID, remove)
}

// WatchDevices is devices.Directory.Watch of the devices that CreateDevice and DeleteDevices create and delete.
func (m *Module) WatchDevices() (ofUser func(userID string) (holds func() bool)) {
	return m.directory.Watch()
}

// LatestPosition returns the to_device position of a new sync token.
func (m *Module) LatestPosition() types.Position { return m.writer.Published() }

// SinceForSync returns the position to take for that in a client's since token; see
// streams.Reader.
func (m *Module) SinceForSync(position types.Position) types.Position {
	return m.reader.Since(position)
}

// AcknowledgeSync takes the position of a since token as the device's acknowledgement. It returns at once.
func (m *Module) AcknowledgeSync(device types.Device, since types.Position) {
	m.reader.Acknowledge(device, since)
}

// ReadForSync returns a device's messages with after < position <= through for a /sync response, and
// the position for its next_batch; see streams.Reader. After an error the response must be a 5xx; HandedOver is to be told of the
// messages of any other.
func (m *Module) ReadForSync(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error) {
	messages, next, err := m.reader.Read(ctx, device, after, through, ignored)
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) { // the client has not gone
		m.metrics.observeFailedRead()
		m.log.WithError(err).WithFields(logrus.Fields{"user_id": device.UserID, "device_id": device.DeviceID}).
			Error("to_device: reading a queue failed")
	}
	return messages, next, err
}

// HandedOver says that messages which ReadForSync returned are in a /sync response that has not failed.
func (m *Module) HandedOver(device types.Device, messages []types.Message) {
	m.reader.HandedOver(device, messages)
}
