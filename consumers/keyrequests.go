package consumers

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
)

const (
	// keyRequestWorkers is how many devices are checked at once.
	keyRequestWorkers = 8
	// maxKeyRequests and maxKeyRequestsOfServer bound what waits. Users have some ten devices: more
	// than the latter from one server, faster than they are checked, is a flood.
	maxKeyRequests         = 1000
	maxKeyRequestsOfServer = 100
	// keyRequestTimeout is more than the 10 seconds for which the host waits for a server's answer.
	keyRequestTimeout = 15 * time.Second
	// keyRequestLogInterval is how often at the most a full queue is logged.
	keyRequestLogInterval = time.Minute
)

// The outcomes that KeyRequests.Observe is told.
const (
	DeviceChecked     = "checked"
	DeviceCheckFailed = "failed"
	DeviceNotChecked  = "dropped" // too many were waiting
)

// KeyRequests have the devices checked that key requests come from, as the host does in
// syncapi/consumers/sendtodevice.go, but in goroutines of their own: no message waits for it. One
// device of a server is checked at a time, so that a slow server takes one worker and no more. Start
// it once; its methods are safe for concurrent use.
type KeyRequests struct {
	// Timeout bounds one check. The default is 15 seconds. It is set before Start, as is Observe.
	Timeout time.Duration
	// Observe is told what became of each check that was asked for; nil means that nobody is.
	Observe func(outcome string)

	isLocal   func(serverName string) bool
	markStale func(ctx context.Context, userID, deviceID string) error
	log       *logrus.Entry
	cancel    context.CancelFunc
	workers   sync.WaitGroup

	mu       sync.Mutex
	changed  sync.Cond                 // of turn and stopping
	known    map[types.Device]struct{} // waiting or under way
	waiting  map[string][]types.Device // by server; there, if empty, while one of its devices is under way
	turn     []string                  // the servers with something waiting and nothing under way
	stopping bool
	dropped  int // since it was last logged
	loggedAt time.Time
}

// NewKeyRequests returns KeyRequests that are not started. isLocal reports whether a server name is one
// of this server's own. markStale has the host fetch the device list of another server's user anew,
// unless it knows the device; it may wait for that server, and returns when its context ends.
func NewKeyRequests(isLocal func(serverName string) bool, markStale func(ctx context.Context, userID, deviceID string) error, log *logrus.Entry) *KeyRequests {
	k := &KeyRequests{
		Timeout:   keyRequestTimeout,
		isLocal:   isLocal,
		markStale: markStale,
		log:       log,
		known:     make(map[types.Device]struct{}),
		waiting:   make(map[string][]types.Device),
	}
	k.changed.L = &k.mu
	return k
}

// Start starts the goroutines.
func (k *KeyRequests) Start(ctx context.Context) {
	ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for range keyRequestWorkers {
		k.workers.Go(func() { k.run(ctx) })
	}
}

// Stop ends the goroutines. What waits is dropped: the device will ask again.
func (k *KeyRequests) Stop() {
	k.mu.Lock()
	k.stopping = true
	k.mu.Unlock()
	k.cancel()
	k.changed.Broadcast()
	k.workers.Wait()
}

// Check looks at a message that was stored, and has the device checked that sent it if it is a key request
// of another server's device. It returns at once. A check that waits already is not queued again, and one
// that is too many is dropped.
func (k *KeyRequests) Check(sender, eventType string, content json.RawMessage) {
	if eventType != types.RoomKeyRequest {
		return
	}
	server, valid := wire.ServerOf(sender)
	if !valid || k.isLocal(server) {
		return
	}
	device := requestingDevice(sender, content)
	if device.DeviceID == "" || !storage.Storable(device) {
		return
	}
	if !k.enqueue(server, device) {
		k.observe(DeviceNotChecked)
	}
}

// requestingDevice returns the device that a key request says it comes from; its ID is empty if it says nothing.
func requestingDevice(sender string, content json.RawMessage) types.Device {
	value, _ := wire.Parse(content)
	fields, _ := value.Object()
	deviceID, _ := fields["requesting_device_id"].String()
	return types.Device{UserID: sender, DeviceID: deviceID}
}

func (k *KeyRequests) enqueue(server string, device types.Device) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, repeated := k.known[device]; repeated || k.stopping {
		return true
	}
	queue, active := k.waiting[server]
	if len(k.known) >= maxKeyRequests || len(queue) >= maxKeyRequestsOfServer {
		k.logDropped()
		return false
	}
	k.known[device] = struct{}{}
	k.waiting[server] = append(queue, device)
	if !active {
		k.giveTurn(server)
	}
	return true
}

func (k *KeyRequests) giveTurn(server string) {
	k.turn = append(k.turn, server)
	k.changed.Signal()
}

func (k *KeyRequests) logDropped() {
	k.dropped++
	if now := time.Now(); now.Sub(k.loggedAt) >= keyRequestLogInterval {
		k.log.WithField("dropped", k.dropped).Warn("to_device: key requests come faster than their devices can be checked")
		k.dropped, k.loggedAt = 0, now
	}
}

func (k *KeyRequests) run(ctx context.Context) {
	for {
		server, device, ok := k.next()
		if !ok {
			return
		}
		k.check(ctx, device)
		k.done(server, device)
	}
}

// next waits for a device to check. It returns false once the goroutine is to end.
func (k *KeyRequests) next() (server string, device types.Device, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.turn) == 0 && !k.stopping {
		k.changed.Wait()
	}
	if k.stopping {
		return "", types.Device{}, false
	}
	server, k.turn = k.turn[0], k.turn[1:]
	queue := k.waiting[server]
	k.waiting[server] = queue[1:]
	return server, queue[0], true
}

// check does not try again: the device repeats its request.
func (k *KeyRequests) check(ctx context.Context, device types.Device) {
	call, cancel := context.WithTimeout(ctx, k.Timeout)
	defer cancel()
	err := k.markStale(call, device.UserID, device.DeviceID)
	if err == nil {
		k.observe(DeviceChecked)
		return
	}
	k.observe(DeviceCheckFailed)
	if ctx.Err() == nil {
		k.log.WithError(err).WithFields(logrus.Fields{"user_id": device.UserID, "device_id": device.DeviceID}).
			Warn("to_device: checking the device of a key request failed")
	}
}

func (k *KeyRequests) done(server string, device types.Device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, device)
	if len(k.waiting[server]) == 0 {
		delete(k.waiting, server)
	} else {
		k.giveTurn(server)
	}
}

func (k *KeyRequests) observe(outcome string) {
	if k.Observe != nil {
		k.Observe(outcome)
	}
}
