package routing

import (
	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// identify finds the IDs by which clients log the contents.
func (h *SendToDevice) identify(targets []devices.Target) {
	if h.Trace == nil {
		return
	}
	for i := range targets {
		targets[i].MessageID = trace.MessageID(targets[i].Content)
	}
}

// drop has the trace told of a target that is passed over, once the message is stored.
func (h *SendToDevice) drop(m *writer.Message, reason trace.Reason, target devices.Target) {
	if h.Trace != nil {
		m.Traced.Dropped = append(m.Traced.Dropped, m.Record(trace.Dropped, reason, target))
	}
}

// accepted are the steps of a message for each of its recipients.
type accepted struct {
	to      trace.Recorder
	records []trace.Record
}

// accept begins them with the local recipients. Those of other servers are added by add.
func (h *SendToDevice) accept(m *writer.Message, more int) *accepted {
	if h.Trace == nil {
		return nil
	}
	a := &accepted{to: h.Trace, records: make([]trace.Record, 0, len(m.Targets)+more)}
	for _, target := range m.Targets {
		a.add(m, target, &storage.EDU{})
	}
	return a
}

func (a *accepted) add(m *writer.Message, target devices.Target, edu *storage.EDU) {
	r := m.Record(trace.Accepted, "", target)
	r.TransactionID, r.EDUID, r.Destination = m.Transaction.TransactionID, edu.MessageID, edu.Destination
	a.records = append(a.records, r)
}

func (a *accepted) tell() {
	if a != nil {
		a.to.Record(a.records...)
	}
}

func (a *accepted) tellFailed() {
	if a == nil {
		return
	}
	for i := range a.records {
		a.records[i].Step = trace.Failed
	}
	a.to.Record(a.records...)
}
