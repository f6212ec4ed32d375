package trace_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Find against its definition, carried out for each pair of records.
func TestFindModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(1, 60).Draw(t, "capacity")
		ring := newRing(capacity)
		var recorded []trace.Record
		for range rapid.IntRange(0, 120).Draw(t, "records") {
			r := drawRecord(t)
			ring.Record(r)
			recorded = append(recorded, r)
		}
		q := trace.Query{
			MessageID: text(t, "msgid", "", "m1", "m2"),
			EDUID:     text(t, "edu", "", "", "e1", "e2"),
			Sender:    text(t, "sender", "", "", "@s1:here", "@s2:there"),
			Limit:     rapid.IntRange(0, 30).Draw(t, "limit"),
		}
		if q.Device.UserID = text(t, "user", "", "@u1:here", "@u2:here"); q.Device.UserID != "" {
			q.Device.DeviceID = text(t, "device", "", "D1", "D2", "*")
		}
		if q.Check() != nil {
			return
		}
		kept := recorded[max(len(recorded)-capacity, 0):]
		want, more := define(q, kept)
		got := ring.Find(q)
		for i := range got.Records {
			got.Records[i].At = began
		}
		for i := range want {
			want[i].At = began
		}
		if !slices.Equal(got.Records, want) || got.More != more || got.Overwritten != (len(recorded) > capacity) {
			t.Fatalf("%+v\nof   %+v\ngot  %+v\nwant %+v\nmore %t, overwritten %t", q, kept, got.Records, want, got.More, got.Overwritten)
		}
	})
}

func text(t *rapid.T, label string, values ...string) string {
	return rapid.SampledFrom(values).Draw(t, label)
}

func drawRecord(t *rapid.T) trace.Record {
	device := types.Device{UserID: text(t, "user", "@u1:here", "@u2:here"), DeviceID: text(t, "device", "D1", "D2")}
	position := types.Position(rapid.IntRange(1, 6).Draw(t, "position"))
	id, edu, sender := text(t, "msgid", "", "m1", "m2"), text(t, "edu", "e1", "e2"), text(t, "sender", "@s1:here", "@s2:there")
	destination := text(t, "destination", "there", "elsewhere")
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0:
		device.DeviceID = text(t, "named", "D1", "*")
		return trace.Record{Step: trace.Accepted, Recipient: device, Sender: sender, MessageID: id}
	case 1, 2:
		return trace.Record{Step: trace.Stored, Recipient: device, Sender: sender, MessageID: id, Position: position}
	case 3:
		return trace.Record{Step: trace.HandedOver, Recipient: device, Sender: sender, MessageID: id, Position: position}
	case 4:
		return trace.Record{Step: trace.Acknowledged, Recipient: device, Position: position, Count: 1}
	case 5:
		return trace.Record{Step: trace.Dropped, Reason: trace.Purged, Recipient: device, Position: position, Count: 1}
	case 6:
		return trace.Record{Step: trace.Accepted, Recipient: device, Sender: sender, MessageID: id, EDUID: edu, Destination: destination}
	case 7:
		return trace.Record{Step: trace.Sent, EDUID: edu, Destination: destination, Position: position}
	case 8:
		return trace.Record{Step: trace.Stored, Recipient: device, Sender: sender, MessageID: id, EDUID: edu, Origin: "there", Position: position}
	default:
		return trace.Record{Step: trace.Dropped, Reason: trace.UnknownDevice, Recipient: device, Sender: sender, MessageID: id}
	}
}

func define(q trace.Query, kept []trace.Record) (found []trace.Record, more bool) {
	for i := range kept {
		if fits(q, &kept[i]) || slices.ContainsFunc(indices(i), func(j int) bool { return fits(q, &kept[j]) && sameMessage(q, kept, j, i) }) {
			found = append(found, kept[i])
		}
	}
	if q.Limit == 0 {
		q.Limit = trace.DefaultLimit
	}
	if over := len(found) - q.Limit; over > 0 {
		return found[over:], true
	}
	return found, false
}

func indices(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

func fits(q trace.Query, r *trace.Record) bool {
	return (q.MessageID == "" || r.MessageID == q.MessageID) && (q.EDUID == "" || r.EDUID == q.EDUID) && (q.Sender == "" || r.Sender == q.Sender) &&
		(q.Device.UserID == "" || r.Recipient.UserID == q.Device.UserID) &&
		(q.Device.DeviceID == "" || r.Recipient.DeviceID == q.Device.DeviceID || r.Recipient.DeviceID == "*")
}

func isRange(r *trace.Record) bool {
	return r.Step == trace.Acknowledged || r.Step == trace.Dropped && r.Position > 0 && r.Recipient.UserID != ""
}

// sameMessage reports whether record i is one of the message of which record j is one, before it.
func sameMessage(q trace.Query, kept []trace.Record, j, i int) bool {
	step, later := &kept[j], &kept[i]
	if step.Destination != "" {
		return later.Destination == step.Destination && later.EDUID == step.EDUID && later.Recipient == types.Device{}
	}
	if !ofQueued(step, step) || later.Destination != "" || later.Recipient != step.Recipient {
		return false
	}
	if !isRange(later) {
		return later.Position == step.Position
	}
	return covers(later, step) && !reachedBefore(q, kept[:i], step)
}

// ofQueued reports whether a record is one of the message in a queue that step is one of, and of no other message.
func ofQueued(r, step *trace.Record) bool {
	return r.Destination == "" && r.Recipient == step.Recipient && r.Position == step.Position && r.Position != 0 && !isRange(r)
}

func covers(all, step *trace.Record) bool {
	return isRange(all) && all.Recipient == step.Recipient && all.Position >= step.Position
}

// reachedBefore reports whether one of the records has covered a message since the first step by which it is known.
func reachedBefore(q trace.Query, records []trace.Record, step *trace.Record) bool {
	known := slices.IndexFunc(records, func(r trace.Record) bool { return fits(q, &r) && ofQueued(&r, step) })
	return slices.ContainsFunc(records[known:], func(r trace.Record) bool { return covers(&r, step) })
}
