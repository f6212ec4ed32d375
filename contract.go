package todevicemodule

import (
	"context"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Host is what the module asks of the homeserver that it is compiled into. The package host
// implements it for Dendrite; another host is one more implementation. Nothing of a host's own
// types crosses it.
//
// In return the host promises to
//   - create and delete the devices of its users inside of Module.CreateDevice and Module.DeleteDevices,
//   - send every transaction to another server through Module.SendTransaction,
//   - have Module.HoldBody read the body of every transaction from another server, before anything else does,
//   - pass the m.direct_to_device EDUs of every transaction from another server to
//     Module.ReceiveEDUs, and answer it with a 5xx after an error,
//   - call Module.RemoteSeen when another server sends a request,
//   - pass PUT /sendToDevice to Module.SendToDevice as soon as the device is authenticated, with its body still to be read,
//   - pass the to_device position of every /sync's since token through Module.SinceForSync, then to
//     Module.AcknowledgeSync, read the queue by Module.ReadForSync, and tell Module.HandedOver of what is in a response,
//   - hand out no to_device position but those that come from the module, and
//   - call Module.Stop before it closes the database.
type Host interface {
	Devices
	Federation
	Waker
	Database
}

// Devices tells which devices there are.
type Devices interface {
	devices.Source
	// VirtualDevice reports whether requests come from a device of that ID although UserDevices does not list it, as those
	// of application services do.
	VirtualDevice(deviceID string) bool
}

// Federation sends to other servers.
type Federation interface {
	outbox.Host
	// IsLocalServer reports whether a server name is one of the host's own.
	IsLocalServer(serverName string) bool
	// Federates reports whether the host sends anything to other servers. Where it does not, their
	// users are passed over as unknown ones are.
	Federates() bool
	// MarkDeviceListStale makes the host ask for the devices of another server's user again, unless it
	// knows the device.
	MarkDeviceListStale(ctx context.Context, userID, deviceID string) error
}

// Waker ends the waiting of clients.
type Waker interface {
	// WakeDevices ends the waiting /sync requests of the devices, for which position is the new
	// to_device position: every message up to and including it can be read. It is called by one
	// goroutine, in order of the positions, and must not block.
	WakeDevices(position types.Position, wakeups []writer.Wakeup)
}

// Database is where messages are kept.
type Database interface {
	// Store returns the store that the messages are kept in, in the database that the
	// configuration names. It is called once.
	Store(config DatabaseConfig) (storage.Store, error)
	// ForeignQueue returns where the host itself keeps messages while the module is not enabled, or nil if it has
	// no such place. The configuration is that of the store. It is called once.
	ForeignQueue(config DatabaseConfig) (storage.ForeignQueue, error)
}
