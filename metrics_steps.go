package todevicemodule

import (
	"slices"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// passedOver are the reasons for which an EDU of another server is passed over whole. It is counted by its outcome then. What the
// database refuses was accepted, and is a lost message wherever it came from.
var passedOver = []trace.Reason{
	trace.Malformed, trace.Spoofed, trace.WithoutID, trace.TooLarge, trace.TooManyTargets, trace.KeyRequestRate,
}

// Record is part of trace.Recorder: it counts the steps of messages. What becomes of EDUs comes from those who send
// and receive them.
func (m *metrics) Record(records ...trace.Record) {
	var now time.Time
	for i := range records {
		r := &records[i]
		n := max(r.Count, 1)
		switch r.Step {
		case trace.Accepted:
			m.accepted.add(sourceOf(r), n)
		case trace.Repeated:
			m.repeated.Add(float64(n))
		case trace.Stored:
			if r.Destination == "" {
				m.stored.Add(float64(n))
			} else {
				m.edusStored.Add(float64(n))
			}
		case trace.Failed:
			m.failed.Add(float64(n))
		case trace.HandedOver:
			if now.IsZero() {
				now = time.Now()
			}
			m.observeHandedOver(r.Position, n, now)
		case trace.Acknowledged:
			m.acknowledged.Add(float64(n))
		case trace.Dropped:
			if !isEDU(r) || !slices.Contains(passedOver, r.Reason) {
				m.dropped.add(string(r.Reason), n)
			}
		case trace.Sent, trace.Refused, trace.SetAside:
		}
	}
}

func (m *metrics) observeHandedOver(position types.Position, n int, now time.Time) {
	m.delivered.Add(float64(n))
	if stored, known := m.storedAt(position); known {
		m.delays.Observe(max(0, now.Sub(stored).Seconds()))
	}
}

func sourceOf(r *trace.Record) string {
	if r.Origin != "" {
		return fromFederation
	}
	return fromClient
}

// isEDU reports whether a step is that of another server's EDU as a whole or in part. An entry of the host's own stream has an
// origin, too, but a recipient and no EDU's ID.
func isEDU(r *trace.Record) bool {
	return r.Origin != "" && (r.EDUID != "" || r.Recipient == types.Device{})
}
