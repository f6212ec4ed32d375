package consumers

import (
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// tell tells a recorder, which may be nil, of a step of messages for each of their targets.
func tell(to trace.Recorder, step trace.Step, reason trace.Reason, messages ...writer.Message) {
	if to == nil {
		return
	}
	var records []trace.Record
	for i := range messages {
		for _, target := range messages[i].Targets {
			records = append(records, messages[i].Record(step, reason, target))
		}
	}
	if len(records) > 0 {
		to.Record(records...)
	}
}

// skippedEDU is an EDU that is passed over whole.
type skippedEDU struct {
	message writer.Message // as far as it is known
	outcome string
}

// tellSkipped tells of an EDU for each of its recipients if they are known, or once. The outcomes are the trace's reasons.
func (f *Federation) tellSkipped(edu skippedEDU) {
	reason := trace.Reason(edu.outcome)
	if len(edu.message.Targets) > 0 {
		tell(f.Trace, trace.Dropped, reason, edu.message)
	} else if f.Trace != nil {
		m := &edu.message
		f.Trace.Record(trace.Record{
			Step: trace.Dropped, Reason: reason, Sender: m.Sender, Type: m.Type, EDUID: m.Traced.EDUID, Origin: m.Traced.Origin,
		})
	}
}
