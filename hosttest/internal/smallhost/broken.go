package smallhost

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// broken is a host that may have something broken. What is not replaced works.
type broken struct {
	// host is what the module asks of the host, calls what the host calls of the module, and routes the client-server API.
	host   brokenHost
	calls  brokenModule
	routes func(whole http.Handler) http.Handler
	// asks is how the module asks the host, behind whatever watches that: a fault in it is the module's.
	asks brokenHost
	// module is whole.
	module todevicemodule.Calls
}

// newBroken breaks what is to be broken of a host that was not given a module yet. wrap is Setup.Wrap.
func newBroken(h *host, wrap func(todevicemodule.Host) todevicemodule.Host, breaks func(*host, *broken)) *broken {
	b := &broken{routes: func(whole http.Handler) http.Handler { return whole }}
	b.host.Host = h
	b.asks.Host = wrap(&b.host)
	breaks(h, b)
	return b
}

// around returns what the host is to call in the place of the module.
func (b *broken) around(m todevicemodule.Calls) todevicemodule.Calls {
	b.module, b.calls.Calls = m, m
	return &b.calls
}

// brokenHost is a Host some of whose methods are replaced.
type brokenHost struct {
	todevicemodule.Host
	userDevices         func(ctx context.Context, userID string) ([]string, error)
	deviceOwners        func(ctx context.Context, deviceIDs []string) (map[string]string, error)
	virtualDevice       func(deviceID string) bool
	isLocalServer       func(serverName string) bool
	federates           func() bool
	markDeviceListStale func(ctx context.Context, userID, deviceID string) error
	ring                func(ctx context.Context, destination string) error
	backoff             func(destination string) (time.Time, bool)
	revive              func(destination string)
	reach               func(ctx context.Context, destination string) error
	wakeDevices         func(position types.Position, wakeups []writer.Wakeup)
	store               func(config todevicemodule.DatabaseConfig) (storage.Store, error)
}

func (b *brokenHost) UserDevices(ctx context.Context, userID string) ([]string, error) {
	return or(b.userDevices, b.Host.UserDevices)(ctx, userID)
}

func (b *brokenHost) DeviceOwners(ctx context.Context, deviceIDs []string) (map[string]string, error) {
	return or(b.deviceOwners, b.Host.DeviceOwners)(ctx, deviceIDs)
}

func (b *brokenHost) VirtualDevice(deviceID string) bool {
	return or(b.virtualDevice, b.Host.VirtualDevice)(deviceID)
}

func (b *brokenHost) IsLocalServer(serverName string) bool {
	return or(b.isLocalServer, b.Host.IsLocalServer)(serverName)
}

func (b *brokenHost) Federates() bool { return or(b.federates, b.Host.Federates)() }

func (b *brokenHost) MarkDeviceListStale(ctx context.Context, userID, deviceID string) error {
	return or(b.markDeviceListStale, b.Host.MarkDeviceListStale)(ctx, userID, deviceID)
}

func (b *brokenHost) Ring(ctx context.Context, destination string) error {
	return or(b.ring, b.Host.Ring)(ctx, destination)
}

func (b *brokenHost) Backoff(destination string) (until time.Time, givenUp bool) {
	return or(b.backoff, b.Host.Backoff)(destination)
}

func (b *brokenHost) Revive(destination string) { or(b.revive, b.Host.Revive)(destination) }

func (b *brokenHost) Reach(ctx context.Context, destination string) error {
	return or(b.reach, b.Host.Reach)(ctx, destination)
}

func (b *brokenHost) WakeDevices(position types.Position, wakeups []writer.Wakeup) {
	or(b.wakeDevices, b.Host.WakeDevices)(position, wakeups)
}

func (b *brokenHost) Store(config todevicemodule.DatabaseConfig) (storage.Store, error) {
	return or(b.store, b.Host.Store)(config)
}

// brokenModule is a module some of whose methods are replaced.
type brokenModule struct {
	todevicemodule.Calls
	stop            func(ctx context.Context) error
	sendToDevice    func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse
	latestPosition  func() types.Position
	sinceForSync    func(position types.Position) types.Position
	acknowledgeSync func(device types.Device, since types.Position)
	readForSync     func(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error)
	handedOver      func(device types.Device, messages []types.Message)
	createDevice    func(ctx context.Context, userID, deviceID string, create func() error) error
	deleteDevices   func(ctx context.Context, userID string, remove func() error) error
	remoteSeen      func(serverName string)
	holdBody        func(req *http.Request, limit int, mostNesting int64) (func(), *util.JSONResponse)
	receiveEDUs     func(ctx context.Context, origin string, contents []json.RawMessage) error
	sendTransaction func(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error
}

func (b *brokenModule) Stop(ctx context.Context) error { return or(b.stop, b.Calls.Stop)(ctx) }

func (b *brokenModule) SendToDevice(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
	return or(b.sendToDevice, b.Calls.SendToDevice)(req, device, eventType, transactionID)
}

func (b *brokenModule) LatestPosition() types.Position {
	return or(b.latestPosition, b.Calls.LatestPosition)()
}

func (b *brokenModule) SinceForSync(position types.Position) types.Position {
	return or(b.sinceForSync, b.Calls.SinceForSync)(position)
}

func (b *brokenModule) AcknowledgeSync(device types.Device, since types.Position) {
	or(b.acknowledgeSync, b.Calls.AcknowledgeSync)(device, since)
}

func (b *brokenModule) ReadForSync(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error) {
	return or(b.readForSync, b.Calls.ReadForSync)(ctx, device, after, through, ignored)
}

func (b *brokenModule) HandedOver(device types.Device, messages []types.Message) {
	or(b.handedOver, b.Calls.HandedOver)(device, messages)
}

func (b *brokenModule) CreateDevice(ctx context.Context, userID, deviceID string, create func() error) error {
	return or(b.createDevice, b.Calls.CreateDevice)(ctx, userID, deviceID, create)
}

func (b *brokenModule) DeleteDevices(ctx context.Context, userID string, remove func() error) error {
	return or(b.deleteDevices, b.Calls.DeleteDevices)(ctx, userID, remove)
}

func (b *brokenModule) RemoteSeen(serverName string) {
	or(b.remoteSeen, b.Calls.RemoteSeen)(serverName)
}

func (b *brokenModule) HoldBody(req *http.Request, limit int, mostNesting int64) (release func(), refusal *util.JSONResponse) {
	return or(b.holdBody, b.Calls.HoldBody)(req, limit, mostNesting)
}

func (b *brokenModule) ReceiveEDUs(ctx context.Context, origin string, contents []json.RawMessage) error {
	return or(b.receiveEDUs, b.Calls.ReceiveEDUs)(ctx, origin, contents)
}

func (b *brokenModule) SendTransaction(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error {
	return or(b.sendTransaction, b.Calls.SendTransaction)(ctx, t, deliver)
}

// or returns the replacement, or the whole one where there is none.
func or[F any](replacement, whole F) F {
	if reflect.ValueOf(replacement).IsNil() {
		return whole
	}
	return replacement
}
