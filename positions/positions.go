// Package positions lets a homeserver have streams of further kinds in its /sync, without a change to its sync token. A since token of
// Dendrite's ends where a dot stands (syncapi/types/types.go, NewStreamTokenFromString): what comes after it is passed over. There each
// registered stream has its position, as .name-42 does in s1_2_3_4_5_6_7_8_9.name-42, and the same token stays good for whatever
// else takes one, and for a server that knows nothing of the stream.
//
// docs/stream-positions.md shows how to add one.
package positions

import (
	"context"
	"encoding/json"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Position is a place in one stream. 0 stands before everything in it.
type Position int64

// Part is what a stream has to say in one /sync response.
type Part struct {
	// JSON is the value under the stream's key, or nil for nothing at all: then the key is left out. It is UTF-8, and nested no deeper than
	// types.MaxContentDepth.
	JSON json.RawMessage
	// Position is how far the part goes: what follows it is left to the next /sync.
	Position Position
}

// Limits are what a part may have. What goes beyond them comes with the next /sync, which then returns at once.
type Limits struct {
	// Items is the most items in a part. 0 stands for 100.
	Items int
	// Bytes is how large the items of a part may be together; a single one may be larger. 0 stands for 1 MiB.
	Bytes int
}

// The limits of a stream that sets none: those of to_device.
const (
	defaultItems = 100
	defaultBytes = 1 << 20
)

// Provider reads a stream. Its methods are called for several requests at once, and must return when the context ends.
//
// An error says nothing of the stream: the /sync is answered with a 5xx, and the client asks again with the same since token. So an
// error must never pass for a stream without news.
type Provider interface {
	// Latest returns the last visible position, 0 or more: everything up to and including it can be read, and nothing will be added there. It never
	// goes back. Positions that are about microseconds since 1970 stay ahead of every token even where a database is restored from a
	// backup; those that are counted from 1 are given out again then, and a client that has seen the first ones misses the second ones.
	// It is called by every /sync, so that it is best answered from memory.
	Latest(ctx context.Context) (Position, error)
	// Complete returns what a device is told whose token has no position in the stream, as it is at to. That is each /sync without a since
	// token; the first one after the stream was added; and the first one after a server that knows nothing of the stream, or of any, has
	// answered the device. A device may be told what it knows already. The part goes up to to, or as far as the limits let it, and
	// Incremental does the rest. With nil for JSON it goes up to to.
	Complete(ctx context.Context, device types.Device, to Position, limits Limits) (Part, error)
	// Incremental returns what is new to the device with from < position <= to, and the same for the same positions. The part goes up to
	// to, or as far as the limits let it, but beyond from. With nil for JSON it goes up to to.
	Incremental(ctx context.Context, device types.Device, from, to Position, limits Limits) (Part, error)
}

// Stream is one kind of news in /sync.
type Stream struct {
	// Name stands in tokens: a letter from a to z, then at most 31 of a to z, 0 to 9 and _. It must never be used for another stream.
	Name string
	// Key is where the part stands in the /sync response, such as org.example.announcements. It follows the grammar of namespaced
	// identifiers (specification, appendices, "Common Namespaced Identifier Grammar"), and is none that the specification has there.
	Key      string
	Provider Provider
	Limits   Limits
}
