// Package todevicemodule is Matrix send-to-device messaging for a homeserver that it is compiled
// into: it stores each message once, hands it to each device in order, and deletes it when the
// device has acknowledged it.
package todevicemodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/matrix-org/util"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Module is the send-to-device messaging of one server.
type Module struct {
	log          *logrus.Entry
	store        storage.Store
	directory    *devices.Directory
	writer       *writer.Writer
	acknowledger *writer.Acknowledger
	janitor      *writer.Janitor
	reader       *streams.Reader
	route        *routing.SendToDevice
	leftovers    *consumers.Leftovers
	metrics      *metrics
	running      atomic.Bool
}

// New puts a module together. The metrics go to registerer; nil means that there are none. Nothing
// runs, and the database is not asked anything, before Start.
func New(config Config, host Host, registerer prometheus.Registerer, log *logrus.Entry) (*Module, error) {
	store, err := host.Store(config.Database)
	if err != nil {
		return nil, fmt.Errorf("opening the database of to_device: %w", err)
	}
	directory, err := devices.NewDirectory(host)
	if err != nil {
		return nil, err
	}
	m := &Module{log: log, store: store, directory: directory, metrics: newMetrics()}
	m.writer = writer.New(writer.Options{Store: store, Wake: host.WakeDevices, Log: log, Observe: m.metrics.observeCommit})
	m.acknowledger = writer.NewAcknowledger(store, log)
	m.janitor = writer.NewJanitor(store, config.TransactionRetention, log)
	m.reader = &streams.Reader{
		Store: store, Acknowledgements: m.acknowledger, Published: m.writer.Published, Limit: config.SyncLimit,
	}
	sender := &writer.Sender{Directory: directory, Writer: m.writer}
	m.route = &routing.SendToDevice{
		Sender:  sender,
		IsLocal: host.IsLocalServer,
		Limits:  routing.Limits{MessageBytes: config.MaxMessageBytes, RequestBytes: config.MaxRequestBytes},
		Timeout: config.RequestTimeout,
		Log:     log,
	}
	m.leftovers = &consumers.Leftovers{Sender: sender, IsLocal: host.IsLocalServer, Log: log}
	if registerer != nil {
		if err = m.metrics.register(registerer); err != nil {
			return nil, fmt.Errorf("registering the metrics of to_device: %w", err)
		}
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
	m.acknowledger.Start(ctx)
	m.janitor.Start(ctx)
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
	m.janitor.Stop()
	m.acknowledger.Stop(ctx)
	return m.writer.Stop(ctx)
}

// SendToDevice answers PUT /sendToDevice/{eventType}/{txnId} of an authenticated device; see
// routing.SendToDevice.
func (m *Module) SendToDevice(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
	res := m.route.Handle(req, device, eventType, transactionID)
	m.metrics.observeRequest(res.Code)
	return res
}

// Receive stores an entry of the host's own stream; see consumers.Leftovers.
func (m *Module) Receive(ctx context.Context, entry consumers.Entry) error {
	return m.leftovers.Receive(ctx, entry)
}

// DevicesChanged is to be called before and after every creation and deletion of a local user's
// device.
func (m *Module) DevicesChanged(userID string) { m.directory.Changed(userID) }

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
// the position for its next_batch; see streams.Reader. After an error the response must be a 5xx.
func (m *Module) ReadForSync(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error) {
	messages, next, err := m.reader.Read(ctx, device, after, through, ignored)
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		m.log.WithError(err).WithFields(logrus.Fields{"user_id": device.UserID, "device_id": device.DeviceID}).
			Error("to_device: reading a queue failed")
	}
	m.metrics.observeRead(len(messages), err)
	return messages, next, err
}
