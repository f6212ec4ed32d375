package positions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"unicode/utf8"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Sync is one /sync request. Begin returns it, and End ends it. Read is called by one goroutine at a time.
type Sync struct {
	registry *Registry
	device   types.Device
	token    Token
	woken    chan struct{}
	places   []place // one for each stream of the registry
}

// place is where a device is in a stream. It moves on while there is nothing for the device.
type place struct {
	position Position
	known    bool // by the client, or because what is complete was nothing
}

// News is what the streams have to say in one response.
type News struct {
	// Parts has the JSON of each stream that has something to say, in their order.
	Parts []KeyedPart
	token Token // without the host's own
}

// KeyedPart is a part of a response.
type KeyedPart struct {
	Key  string
	JSON json.RawMessage
}

// Begin takes part in the request of a device with a since token. From then on every call that wakes the device is seen: what comes before a
// Read is in it, and what comes after it is told by Woken.
func (r *Registry) Begin(device types.Device, since Token) *Sync {
	s := &Sync{registry: r, device: device, token: since, woken: make(chan struct{}, 1)}
	if r.Empty() {
		return s
	}
	s.places = make([]place, len(r.streams))
	for i := range s.places {
		s.places[i].position, s.places[i].known = since.position(r.streams[i].Name)
	}
	r.waiting.add(s)
	return s
}

// End is called once the request is answered.
func (s *Sync) End() {
	if !s.registry.Empty() {
		s.registry.waiting.remove(s)
	}
}

// Woken receives when there may be something new since the last Read.
func (s *Sync) Woken() <-chan struct{} { return s.woken }

func (s *Sync) wake() {
	select {
	case s.woken <- struct{}{}:
	default: // it has been woken, and will look
	}
}

// Read returns what is new to the device. Read again, it goes on behind what held nothing for the device, and returns the rest of the streams
// anew. Each error means that the request must fail, and that its since token stays good: not all of what is new was read.
func (s *Sync) Read(ctx context.Context) (News, error) {
	news := News{}
	for i := range s.places {
		stream := &s.registry.streams[i]
		part, err := s.read(ctx, stream, &s.places[i])
		if err != nil {
			return News{}, fmt.Errorf("reading the stream %s: %w", stream.Name, err)
		}
		news.token.parts = append(news.token.parts, newPart(stream, part.Position))
		if part.JSON != nil {
			news.Parts = append(news.Parts, KeyedPart{stream.Key, part.JSON})
		}
	}
	for _, unknown := range s.token.parts {
		news.token.add(unknown)
	}
	return news, nil
}

func newPart(stream *Stream, position Position) part { return part{stream.Name, position} }

// read returns the part of one stream. A provider that panics does not end the process, on whose behalf nobody else could recover.
func (s *Sync) read(ctx context.Context, stream *Stream, at *place) (next Part, err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("the provider panicked: %v\n%s", panicked, debug.Stack())
		}
	}()
	latest, err := stream.Provider.Latest(ctx)
	if err != nil {
		return Part{}, err
	}
	if latest < 0 {
		return Part{}, fmt.Errorf("the provider is at position %d, which no token can have", latest)
	}
	if at.position > latest {
		at.position = latest // it was never handed out, or was before the database was restored
	}
	switch {
	case !at.known:
		next, err = stream.Provider.Complete(ctx, s.device, latest, stream.Limits)
	case at.position < latest:
		next, err = stream.Provider.Incremental(ctx, s.device, at.position, latest, stream.Limits)
	default:
		next = Part{Position: at.position}
	}
	if err == nil {
		err = next.check(*at, latest)
	}
	if err == nil && next.JSON == nil {
		*at = place{next.Position, true}
	}
	return next, err
}

// check returns an error for a part that would have the client miss something, ask for the same without end, or fail at the whole response.
func (p Part) check(at place, latest Position) error {
	switch {
	case p.JSON == nil && p.Position != latest:
		return fmt.Errorf("the provider has nothing up to position %d, but was asked up to %d", p.Position, latest)
	case p.JSON != nil && (p.Position > latest || p.Position < 0 || at.known && p.Position <= at.position):
		return fmt.Errorf("the provider's part goes up to position %d, but was asked for from %d to %d", p.Position, at.position, latest)
	case p.JSON != nil && (!json.Valid(p.JSON) || !utf8.Valid(p.JSON)):
		return errors.New("the provider's part is not JSON in UTF-8")
	case types.IsTooDeep(p.JSON):
		return fmt.Errorf("the provider's part is nested deeper than %d levels", types.MaxContentDepth)
	}
	return nil
}

// NextBatch returns the token of the response: the host's own, the positions of the streams, and those of streams that this server does not
// know, so that one that knows them goes on there.
func (n *News) NextBatch(host string) string {
	t := Token{Host: host, parts: n.token.parts}
	return t.String()
}
