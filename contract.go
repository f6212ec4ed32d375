package todevicemodule

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Host is what the module asks of the homeserver that it is compiled into, and Calls what that homeserver calls in return. The package host
// implements it for Dendrite; another host is one more implementation, of which docs/hosts.md has the steps. Nothing of a host's own types
// crosses it.
//
// Each promise has a name in parentheses, under which the package hosttest holds a host against it. For all methods of a host:
//
//   - New calls Store, ForeignQueue and Federates, each once, and nothing else of a host. The module calls the other methods from the beginning of
//     Start, before it has returned, until Stop has returned; after that only where a call of the host's that is still under way needs them. A host
//     that is not ready yet returns an error, or does nothing where there is none to return: the module asks again.
//   - Several goroutines may call at once, but for WakeDevices.
//   - A method with a context may block until that ends, and is then to return. One without must not block.
//   - They must not call CreateDevice or DeleteDevices of the module, which may be waiting for them.
type Host interface {
	Devices
	Federation
	Waker
	Database
}

// Devices tells which devices there are. The module remembers what it is told until CreateDevice or DeleteDevices is called for the user, so that a
// device which comes or goes past these is overlooked.
type Devices interface {
	devices.Source
	// VirtualDevice reports whether requests come from a device of that ID although UserDevices does not list it, as those of application
	// services do (listed-devices-are-not-virtual): the transaction IDs of such a device are remembered although there is no such device.
	// The answer never changes.
	VirtualDevice(deviceID string) bool
}

// Federation knows the names of servers and sends to them. No answer of IsLocalServer or Federates changes while the module runs.
type Federation interface {
	outbox.Host
	// IsLocalServer reports whether a server name is one of the host's own (local-servers-are-known).
	IsLocalServer(serverName string) bool
	// Federates reports whether the host sends anything to other servers (federation-is-told). Where it does not, their
	// users are passed over as unknown ones are.
	Federates() bool
	// MarkDeviceListStale makes the host ask for the devices of another server's user again, unless it knows the device
	// (device-lists-are-marked-stale). The module calls it once a key request (m.room_key_request) of such a device is stored, from
	// goroutines of its own, for one device of a server at a time and 15 seconds at the most; the host may wait for that server. After an
	// error it does not call again by itself: the device repeats its request.
	MarkDeviceListStale(ctx context.Context, userID, deviceID string) error
}

// Waker ends the waiting of clients.
type Waker interface {
	// WakeDevices ends the waiting /sync requests of the devices, and of no others (waiting-devices-are-woken), and does not wait for them
	// (waking-does-not-block). The position is the new to_device position: every message up to and including it can be read. A device may
	// be named twice.
	//
	// The module calls it after each commit with messages for devices of this server, from one goroutine, in order of the positions, one
	// call at a time (wake-ups-come-in-order), and stores nothing more before it returns.
	WakeDevices(position types.Position, wakeups []writer.Wakeup)
}

// Database is where messages are kept.
type Database interface {
	// Store returns the store that the messages are kept in, in the database that the configuration names: storage/postgres, storage/sqlite
	// or another one that passes storagetest.Run. It is called once, by New (the-database-is-opened-once), and is not to wait for the
	// database, which the module asks from Start on. What is in the store outlives the host (the-store-is-kept). An error makes New fail.
	Store(config DatabaseConfig) (storage.Store, error)
	// ForeignQueue returns where the host itself keeps messages while the module is not enabled, or nil if it has no such place. The
	// configuration is that of the store. It is called once, by New, after Store. Start moves what is there into the store, before anything
	// is served. An error makes New fail.
	ForeignQueue(config DatabaseConfig) (storage.ForeignQueue, error)
}

// Calls is what the host calls in return, of a Module. All of it is safe for concurrent use, but for Start.
type Calls interface {
	LifeCycle
	ClientRequests
	SyncRequests
	DeviceChanges
	OtherServers
}

// LifeCycle begins and ends the module.
type LifeCycle interface {
	// Start brings the tables up to date, takes the lock that keeps a second server out and starts the module's goroutines. It returns
	// storage.ErrLocked, after a second, if another server runs on the database (a-second-server-is-refused). After an error nothing runs.
	// It is called once, and blocks while messages of the host's own queue are taken over. That ctx ends later does not end the module.
	//
	// The host calls nothing else of the module before it has returned, and serves nothing: the first position is not known before.
	Start(ctx context.Context) error
	// Stop stores what was taken, deletes what was acknowledged, and ends the module's goroutines. Where the database does not allow that before
	// ctx ends, it gives up; transactions to other servers have 3 seconds. It does nothing unless the module runs.
	//
	// Nothing that was accepted is lost by it, and nothing that was acknowledged comes again (a-stop-loses-nothing). The host calls it
	// before it closes the database (the-module-is-stopped-first), best once it takes no more requests. What comes later is not stored: it
	// gets a 503.
	Stop(ctx context.Context) error
}

// ClientRequests are those that send messages.
type ClientRequests interface {
	// SendToDevice returns the answer to PUT /_matrix/client/{r0,v3,unstable}/sendToDevice/{eventType}/{txnId} of an authenticated device,
	// which is to be sent as it is, with its headers (every-version-is-served, answers-arrive-whole). It answers 200 only when the message
	// is durably stored for every recipient that exists (an-accepted-message-is-durable, who-is-valid-is-reached), in one transaction
	// (a-request-is-one-commit); 4xx only when the request is at fault, in which case nothing is stored; and 5xx otherwise: then the same
	// request again is stored once (repetitions-are-recognised). It blocks while the body arrives, and for RequestTimeout where the
	// database or the memory for bodies is not there.
	//
	// Event type and transaction ID come percent-decoded, each from one segment of the path (paths-are-decoded). The host calls it as soon
	// as the device is authenticated, with the body still to be read (requests-arrive-unread): a request whose device is deleted after the
	// call began stores nothing (deletions-overtake-requests). Guests may send (guests-may-send), and requests without a good access token
	// never get here (only-devices-send). The body may have SetReadDeadline, as http.ResponseController has, by which one that hangs gives
	// up its room.
	SendToDevice(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse
}

// SyncRequests are the to_device part of GET /sync. The host calls these for each request: SinceForSync and AcknowledgeSync with the
// to_device position of the since token, ReadForSync as often as it looks for something to say, and HandedOver. Only ReadForSync blocks.
type SyncRequests interface {
	// LatestPosition returns the to_device position of a new sync token. It never becomes smaller, and after a database was restored from a
	// backup it goes on from the present time. The host hands out no to_device position but those that come from it and from ReadForSync
	// (positions-are-the-modules).
	LatestPosition() types.Position
	// SinceForSync returns the position to take for that in a client's since token (tokens-ahead-hide-nothing): the same one, or one before
	// every message if it is ahead of everything that was ever handed out. What it returns may be far below zero.
	SinceForSync(position types.Position) types.Position
	// AcknowledgeSync takes the position of a since token as the device's acknowledgement of everything up to and including it
	// (since-acknowledges). It returns at once; ReadForSync hides from then on what is deleted soon. The host does not call it for a /sync
	// without since (no-since-deletes-nothing), and calls it before ReadForSync.
	AcknowledgeSync(device types.Device, since types.Position)
	// ReadForSync returns a device's messages with after < position <= through, at most SyncLimit, in their order, and the position for
	// next_batch, by which the device acknowledges exactly these (queues-come-in-batches, each-message-comes-once). after is what
	// SinceForSync returned, or zero without a since token, and through a LatestPosition. The module asks ignored, at most once, for the
	// users whose messages are to be passed over; nil means that there are none.
	//
	// Where it returns messages the host answers at once; where it returns none it may wait for WakeDevices. After an error it answers 5xx
	// (failed-reads-are-5xx), and since stays good: taken for an empty queue, it would have the next since delete what is unread. A device
	// that was deleted meanwhile gets no answer but 401, whether or not there is a device of that ID again (deletions-overtake-syncs): what was
	// read may have been for the next one. So look whether the access token still holds, after the last ReadForSync.
	ReadForSync(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error)
	// HandedOver says that messages which ReadForSync returned are in a /sync response that has not failed (handed-over-is-told). The trace
	// shows it.
	HandedOver(device types.Device, messages []types.Message)
}

// DeviceChanges are the creations and deletions of devices of the host's users, whatever asked for them. The changes of one user's devices
// come after each other: each waits for the one before, for RequestTimeout at the most.
type DeviceChanges interface {
	// CreateDevice runs create, which is to create a device of a local user, once nothing is left of an earlier device of the same ID. It
	// returns the error of create, or, without having called it, that of the clean-up: then the device must not be created, and the client
	// gets a 5xx (new-devices-find-nothing). An empty device ID stands for one that nobody had before, which create chooses; that waits for
	// nobody. A device that exists keeps what it has.
	//
	// The host creates every device inside of it (new-devices-are-reached). create is called once at the most, by the same goroutine. Once
	// it has returned, UserDevices lists the device.
	CreateDevice(ctx context.Context, userID, deviceID string, create func() error) error
	// DeleteDevices runs remove, which is to delete devices of a local user. When it returns nil nothing is kept for those that do not
	// exist any more, and nothing that was under way for them will be stored; the others keep what they have (other-devices-keep-theirs).
	// After an error the devices may be deleted all the same, and what is left of them goes soon, or before a device of the same ID is
	// created; the client gets a 5xx (failed-clean-ups-are-5xx). The clean-up goes on where ctx ends.
	//
	// The host deletes every device inside of it: at /logout, /logout/all, DELETE /devices and /delete_devices, a deactivation, a new
	// password that signs others out, and by an administrator (deleted-devices-leave-nothing). remove is called once at the most, by the
	// same goroutine. Once it has returned, UserDevices lists none of the devices, and their access tokens are good for nothing.
	DeleteDevices(ctx context.Context, userID string, remove func() error) error
	// WatchDevices is for whatever else the host remembers of devices, such as whose an access token is; see devices.Directory.Watch. It
	// does not block.
	WatchDevices() (ofUser func(userID string) (holds func() bool))
}

// OtherServers are transactions from other servers and to them (server-server API, "Transactions").
type OtherServers interface {
	// RemoteSeen is to be called when another server sends a request of any kind, authenticated or not (remotes-are-noticed): what
	// waits for it may be sent. It returns at once.
	RemoteSeen(serverName string)
	// HoldBody replaces the body of another server's transaction, which may have limit bytes, and mostNesting of nesting (types.Nesting),
	// by one that is whole and in memory, within the bound that those of all servers have together. Otherwise it returns the answer to the
	// request. It blocks until the body has arrived.
	//
	// The host calls it before anything else reads the body (bodies-are-held), and release once the request is answered. As in
	// SendToDevice, the body may have SetReadDeadline. The limit is to have room for the PDUs and EDUs of a transaction, of 64 KiB each, and for one
	// message of MaxMessageBytes: 25 MiB is enough for the largest that can be configured. mostNesting bounds what a check of the signature
	// costs, which copies each object once to sort its keys: the limit times types.MaxContentDepth lets everything through that the module takes.
	HoldBody(req *http.Request, limit int, mostNesting int64) (release func(), refusal *util.JSONResponse)
	// ReceiveEDUs stores what the m.direct_to_device EDUs of one transaction carry, in their order. It returns nil once none of them needs
	// further attention: each is durably stored for every recipient that exists, or was before (repetitions-are-stored-once), or is passed
	// over for good. It may block for RequestTimeout.
	//
	// The host passes it the contents of these EDUs of every transaction, also of one that comes again (edus-are-passed), with the name of
	// the server whose signature is good (origins-are-authenticated), before it answers. It answers 429 after consumers.ErrLimitExceeded
	// (limited-servers-are-told-to-wait), and 5xx after any other error (edus-are-stored-before-the-answer): then the server sends the
	// transaction again.
	ReceiveEDUs(ctx context.Context, origin string, contents []json.RawMessage) error
	// SendTransaction sends a transaction of the host's to another server without the doorbells in it, and with it what waits for that
	// server, in order (edus-arrive-once-and-in-order, edus-outlive-a-restart). It calls deliver for as many transactions as that takes,
	// one after another, by the same goroutine, and not at all where there is nothing; each has an ID of the module's, under which its
	// content never changes. It returns nil once the host's own part was accepted; without such a part unless the server failed. Beside
	// what deliver takes it may go on for a second.
	//
	// The host calls it in the place of deliver for every transaction to another server (transactions-go-through-the-module), one at a time
	// to each, and no server waits for another (destinations-do-not-wait-for-each-other). deliver sends what it is given
	// (transactions-are-sent-as-they-are). It returns nil after a 200 alone (failures-are-told), and a gomatrix.HTTPError for another
	// answer (refusals-are-told). After an error the host leaves the server alone for a while, which Backoff tells.
	SendTransaction(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error
}

var _ Calls = (*Module)(nil)
