package writer

import (
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// maxNotesKept bounds the records for which memory is kept from one batch to the next.
const maxNotesKept = 1024

// Traced is what the trace tells of a message and the store does not keep.
type Traced struct {
	// Origin and EDUID are of the EDU that a message of another server came in.
	Origin, EDUID string
	// MessageIDs are the org.matrix.msgid of the copies, in their order; nil if none has one. Sender sets them.
	MessageIDs []string
	// Dropped is who does not get the message, for the trace to be told once the message is stored for the others, and
	// not again at its repetition. Sender adds the devices that do not exist.
	Dropped []trace.Record
}

// without adds the targets that do not exist to a message's Dropped.
func (m *Message) without(missing []devices.Target) []trace.Record {
	dropped := slices.Clip(m.Traced.Dropped) // shared by the next attempt
	for _, target := range missing {
		reason := trace.UnknownDevice
		if !storage.Storable(target.Device) {
			reason = trace.InvalidUser
		}
		dropped = append(dropped, m.Record(trace.Dropped, reason, target))
	}
	return dropped
}

// Record returns the record of a step of the message for one of its targets.
func (m *Message) Record(step trace.Step, reason trace.Reason, target devices.Target) trace.Record {
	return trace.Record{
		Step: step, Reason: reason, Recipient: target.Device, Sender: m.Sender, Type: m.Type,
		MessageID: target.MessageID, EDUID: m.Traced.EDUID, Origin: m.Traced.Origin,
	}
}

// noteStored notes that a part is stored once the batch is.
func (w *Writer) noteStored(p *Part, first types.Position, edus []storage.EDU) {
	if w.Trace == nil {
		return
	}
	w.note(p, trace.Stored, first, edus)
	w.notes = append(w.notes, p.Traced.Dropped...)
}

// noteRepeated notes that a part is passed over.
func (w *Writer) noteRepeated(p *Part) {
	if w.Trace != nil {
		w.note(p, trace.Repeated, 0, p.EDUs)
	}
}

// noteStoredBefore notes that those of a request's parts are passed over whose transactions are stored.
func (w *Writer) noteStoredBefore(r *request, stored map[types.TransactionKey]struct{}) {
	for i := range r.Parts {
		if r.Parts[i].isAmong(stored) {
			w.noteRepeated(&r.Parts[i])
		}
	}
}

// note notes a step of each copy, of which the first has the given position unless that is zero, and of each EDU.
func (w *Writer) note(p *Part, step trace.Step, first types.Position, edus []storage.EDU) {
	w.notes = slices.Grow(w.notes, len(p.Copies)+len(edus))
	record := trace.Record{Step: step, Sender: p.Sender, Type: p.Type, EDUID: p.Traced.EDUID, Origin: p.Traced.Origin}
	for i := range p.Copies {
		record.Recipient = p.Copies[i].Device
		if first != 0 {
			record.Position = first + types.Position(i)
		}
		if p.Traced.MessageIDs != nil {
			record.MessageID = p.Traced.MessageIDs[i]
		}
		w.notes = append(w.notes, record)
	}
	for i := range edus {
		w.notes = append(w.notes, trace.Record{
			Step: step, Sender: p.Sender, Type: p.Type,
			EDUID: edus[i].MessageID, Destination: edus[i].Destination, Position: edus[i].Position,
		})
	}
}

// tell hands what was noted to the trace.
func (w *Writer) tell() {
	if len(w.notes) > 0 {
		w.Trace.Record(w.notes...)
	}
	w.dropNotes()
}

func (w *Writer) dropNotes() {
	if clear(w.notes); cap(w.notes) > maxNotesKept {
		w.notes = nil
	}
	w.notes = w.notes[:0]
}
