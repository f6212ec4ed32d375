package trace

import (
	"slices"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Find returns the steps that a query asks for. A step that stands for everything up to a position is found for the messages that it
// reaches first: the first acknowledgement that covers a message, not those after it. A query that Check does
// not accept finds nothing, and tells the rest of the Result at once.
//
// It goes through all that is kept, 7 ms for 50,000 records, and holds nobody up.
func (r *Ring) Find(q Query) Result {
	kept := r.contents()
	result := Result{Since: kept.start, Overwritten: kept.lost, Capacity: r.Capacity}
	valid := q.Check() == nil
	f := newFinder(q)
	first := true
	kept.each(func(e *encoded) bool {
		if first && kept.lost {
			result.Since = time.Unix(0, e.at).UTC()
		}
		first = false
		if valid && f.wanted(e) {
			f.add(e)
		}
		return valid
	})
	result.Records, result.More = f.records()
	return result
}

// outgoing names an EDU for another server.
type outgoing struct{ destination, eduID string }

// finder goes through the records in the order in which they were recorded. A message is known from its first step that the query
// fits; what else belongs to it comes later.
type finder struct {
	query Query
	// waiting are the positions, in ascending order, of the known messages that nothing has reached yet.
	waiting map[types.Device][]types.Position
	known   map[copied]struct{}
	edus    map[outgoing]struct{}

	found []Record // once it has query.Limit of them, a ring
	next  int      // in found, where the oldest is
	more  bool
}

// copied is a message in a queue.
type copied struct {
	types.Device
	position types.Position
}

func newFinder(q Query) *finder {
	if q.Limit == 0 {
		q.Limit = DefaultLimit
	}
	q.MessageID, q.EDUID, q.Sender = clip(q.MessageID), clip(q.EDUID), clip(q.Sender)
	q.Device = types.Device{UserID: clip(q.Device.UserID), DeviceID: clip(q.Device.DeviceID)}
	return &finder{
		query: q, waiting: make(map[types.Device][]types.Position), known: make(map[copied]struct{}), edus: make(map[outgoing]struct{}),
	}
}

func (f *finder) wanted(e *encoded) bool {
	if f.fits(e) {
		f.learn(e)
		return true
	}
	return f.belongs(e)
}

// fits reports whether a step has all that is asked for.
func (f *finder) fits(e *encoded) bool {
	has := func(text int, asked string) bool { return asked == "" || string(e.texts[text]) == asked }
	return has(textMessageID, f.query.MessageID) && has(textEDUID, f.query.EDUID) && has(textSender, f.query.Sender) &&
		has(textUser, f.query.Device.UserID) && (has(textDevice, f.query.Device.DeviceID) || string(e.texts[textDevice]) == "*")
}

// learn remembers the message that a step which fits is one of.
func (f *finder) learn(e *encoded) {
	if len(e.texts[textDestination]) > 0 && len(e.texts[textEDUID]) > 0 {
		f.edus[outgoing{string(e.texts[textDestination]), string(e.texts[textEDUID])}] = struct{}{}
		return
	}
	if e.position == 0 || e.isRange() {
		return
	}
	c := copied{e.recipient(), e.position}
	if _, known := f.known[c]; known {
		return
	}
	f.known[c] = struct{}{}
	positions := f.waiting[c.Device]
	at, _ := slices.BinarySearch(positions, c.position)
	f.waiting[c.Device] = slices.Insert(positions, at, c.position)
}

// belongs reports whether a step that does not fit is one of a known message.
func (f *finder) belongs(e *encoded) bool {
	if len(e.texts[textDestination]) > 0 {
		_, known := f.edus[outgoing{string(e.texts[textDestination]), string(e.texts[textEDUID])}]
		return known && len(e.texts[textUser]) == 0 // the EDU as a whole, not what it has for others
	}
	if len(f.waiting) == 0 || e.position == 0 {
		return false
	}
	if e.isRange() {
		return f.reached(e)
	}
	_, known := f.known[copied{e.recipient(), e.position}]
	return known
}

// reached reports whether a step for everything up to its position is the first to reach a known message.
func (f *finder) reached(e *encoded) bool {
	device := types.Device{UserID: string(e.texts[textUser]), DeviceID: string(e.texts[textDevice])}
	positions := f.waiting[device]
	n, exact := slices.BinarySearch(positions, e.position)
	if exact {
		n++
	}
	if n == 0 {
		return false
	}
	f.waiting[device] = positions[n:]
	return true
}

// isRange reports whether a step is one of everything in a queue up to its position.
func (e *encoded) isRange() bool {
	step := e.step()
	return e.position != 0 && len(e.texts[textUser]) > 0 && (step == Acknowledged || step == Dropped)
}

func (f *finder) add(e *encoded) {
	if len(f.found) < f.query.Limit {
		f.found = append(f.found, e.record())
		return
	}
	f.found[f.next] = e.record()
	f.next = (f.next + 1) % len(f.found)
	f.more = true
}

// records returns what was found, the oldest first, and whether there was more.
func (f *finder) records() (found []Record, more bool) {
	return append(f.found[f.next:len(f.found):len(f.found)], f.found[:f.next]...), f.more
}
