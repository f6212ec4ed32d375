// Package types holds the words that every part of the module shares: positions, devices and
// messages. It imports nothing of the module, so that any part may import it.
package types

import (
	"encoding/json"
	"time"
)

// Position orders send-to-device messages. It is the to_device part of a sync token: one
// sequence for the whole server, strictly growing, never reused and never going back. Positions
// are about microseconds since 1970, so they stay ahead of every token handed out before a
// database was restored from a backup. Zero stands before every message.
type Position int64

// Time returns when the module allotted the position. Positions that the host gave to messages are no times.
func (p Position) Time() time.Time { return time.UnixMicro(int64(p)) }

// RoomKeyRequest is the event type with which a device asks others for the keys of a room's messages
// (client-server API, "Key requests").
const RoomKeyRequest = "m.room_key_request"

// Device is one client device of one local user: the owner of a queue.
type Device struct {
	UserID   string // full Matrix user ID, "@localpart:server"
	DeviceID string // opaque to the server, unique for the user
}

// Message is one send-to-device message as a device receives it under to_device.events of
// /sync (client-server API, "Send-to-Device messaging").
type Message struct {
	// Position is unique among all messages.
	Position Position
	// Sender is the full user ID of who sent the message.
	Sender string
	// Type is the event type from the path of the request.
	Type string
	// Content is the JSON object as it was sent, byte for byte. It is never logged.
	Content json.RawMessage
}

// TransactionKey names one client request for ever: the scope of a transaction ID is the
// device, not its access token (client-server API v1.7, "Transaction identifiers"). What reaches the
// server otherwise has keys that no client request can have, since their UserID is no user ID.
type TransactionKey struct {
	Device
	EventType     string
	TransactionID string
}
