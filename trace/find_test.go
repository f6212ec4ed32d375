package trace_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// The steps of a day: messages to two local devices, one to another server, one from it, and one that nobody gets.
func aDay(ring *trace.Ring) {
	local := func(step trace.Step, device types.Device, id string, position types.Position) trace.Record {
		return trace.Record{Step: step, Recipient: device, Sender: alice, Type: "m.type", MessageID: id, Position: position}
	}
	toAll := types.Device{UserID: phone.UserID, DeviceID: "*"}
	ring.Record(local(trace.Accepted, toAll, "both", 0))
	ring.Record(local(trace.Stored, phone, "both", 1), local(trace.Stored, laptop, "both", 2))
	ring.Record(local(trace.Accepted, phone, "one", 0))
	ring.Record(local(trace.Stored, phone, "one", 3))
	ring.Record(local(trace.HandedOver, phone, "both", 1))
	ring.Record(trace.Record{Step: trace.Acknowledged, Recipient: phone, Position: 2, Count: 1})
	ring.Record(local(trace.HandedOver, phone, "one", 3))
	ring.Record(trace.Record{Step: trace.Acknowledged, Recipient: phone, Position: 3, Count: 1})
	ring.Record(trace.Record{Step: trace.Dropped, Reason: trace.Purged, Recipient: laptop, Position: 9, Count: 1})

	dan, eve := types.Device{UserID: "@dan:there", DeviceID: "D"}, types.Device{UserID: "@eve:there", DeviceID: "*"}
	ring.Record(
		trace.Record{Step: trace.Accepted, Recipient: dan, Sender: alice, MessageID: "for dan", EDUID: "edu1", Destination: "there"},
		trace.Record{Step: trace.Accepted, Recipient: eve, Sender: alice, MessageID: "for eve", EDUID: "edu1", Destination: "there"},
	)
	ring.Record(trace.Record{Step: trace.Stored, Sender: alice, EDUID: "edu1", Destination: "there", Position: 10})
	ring.Record(trace.Record{Step: trace.Stored, Sender: alice, EDUID: "edu1", Destination: "elsewhere", Position: 11})
	ring.Record(trace.Record{Step: trace.Refused, EDUID: "edu1", Destination: "there", Position: 10})
	ring.Record(trace.Record{Step: trace.Sent, EDUID: "edu1", Destination: "there", Position: 10})

	in := trace.Record{Step: trace.Accepted, Recipient: phone, Sender: "@dan:there", MessageID: "from dan", EDUID: "edu2", Origin: "there"}
	ring.Record(in)
	in.Step, in.Position = trace.Stored, 12
	ring.Record(in)
	in.Step, in.EDUID, in.Origin = trace.HandedOver, "", ""
	ring.Record(in)
	ring.Record(trace.Record{Step: trace.Acknowledged, Recipient: phone, Position: 12, Count: 1})
	ring.Record(trace.Record{Step: trace.Acknowledged, Recipient: phone, Position: 12, Count: 1})
	ring.Record(trace.Record{Step: trace.Dropped, Reason: trace.UnknownDevice, Recipient: types.Device{UserID: "@bob:here", DeviceID: "OLD"}, Sender: alice, MessageID: "lost"})
}

func steps(records []trace.Record) []string {
	list := []string{}
	for _, r := range records {
		list = append(list, fmt.Sprintf("%s %s %d", r.Step, r.Recipient.DeviceID+r.Destination, r.Position))
	}
	return list
}

func TestFind(t *testing.T) {
	ring := newRing(1000)
	aDay(ring)
	for name, test := range map[string]struct {
		query trace.Query
		want  []string
	}{
		"a message for two devices": {trace.Query{MessageID: "both"}, []string{
			"accepted * 0", "stored PHONE 1", "stored LAPTOP 2", "handed_over PHONE 1", "acknowledged PHONE 2", "dropped LAPTOP 9",
		}},
		"the same for one of them": {trace.Query{MessageID: "both", Device: phone}, []string{
			"accepted * 0", "stored PHONE 1", "handed_over PHONE 1", "acknowledged PHONE 2",
		}},
		"covered by a later acknowledgement": {trace.Query{MessageID: "one"}, []string{
			"accepted PHONE 0", "stored PHONE 3", "handed_over PHONE 3", "acknowledged PHONE 3",
		}},
		"dropped": {trace.Query{MessageID: "lost"}, []string{"dropped OLD 0"}},
		"one of two in an EDU": {trace.Query{MessageID: "for dan"}, []string{
			"accepted Dthere 0", "stored there 10", "refused there 10", "sent there 10",
		}},
		"an EDU for another server": {trace.Query{EDUID: "edu1", Device: types.Device{UserID: "@eve:there"}}, []string{
			"accepted *there 0", "stored there 10", "refused there 10", "sent there 10",
		}},
		"an EDU of another server": {trace.Query{EDUID: "edu2"}, []string{
			"accepted PHONE 0", "stored PHONE 12", "handed_over PHONE 12", "acknowledged PHONE 12",
		}},
		"a device of another server": {trace.Query{Device: types.Device{UserID: "@eve:there", DeviceID: "X"}}, []string{
			"accepted *there 0", "stored there 10", "refused there 10", "sent there 10",
		}},
		"a device": {trace.Query{Device: laptop}, []string{"accepted * 0", "stored LAPTOP 2", "dropped LAPTOP 9"}},
		"a sender": {trace.Query{Sender: "@dan:there"}, []string{
			"accepted PHONE 0", "stored PHONE 12", "handed_over PHONE 12", "acknowledged PHONE 12",
		}},
		"a sender and a device that got nothing of it": {trace.Query{Sender: "@dan:there", Device: laptop}, []string{}},
		"an ID that is part of others":                 {trace.Query{MessageID: "o"}, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := ring.Find(test.query)
			if !slices.Equal(steps(got.Records), test.want) || got.More {
				t.Errorf("found are %q, want %q; more: %t", steps(got.Records), test.want, got.More)
			}
		})
	}
}

func TestFindAllOfAUser(t *testing.T) {
	ring := newRing(1000)
	aDay(ring)
	got := ring.Find(trace.Query{Device: types.Device{UserID: phone.UserID}})
	all := 0
	for _, r := range got.Records {
		if r.Recipient.UserID != phone.UserID {
			t.Errorf("found is %+v", r)
		}
		if r.Step == trace.Acknowledged {
			all++
		}
	}
	if all != 4 || len(got.Records) != 16 {
		t.Errorf("%d records are found, %d of them acknowledgements: %q", len(got.Records), all, steps(got.Records))
	}
}

// What is over the limit is still gone through: a message is known from its first step.
func TestFindKeepsTheNewest(t *testing.T) {
	ring := newRing(1000)
	aDay(ring)
	all := ring.Find(trace.Query{MessageID: "both"}).Records
	for limit := 1; limit <= len(all)+1; limit++ {
		got := ring.Find(trace.Query{MessageID: "both", Limit: limit})
		want := all[max(len(all)-limit, 0):]
		if !slices.Equal(got.Records, want) || got.More != (limit < len(all)) {
			t.Errorf("of %d records %d are %q, more: %t", len(all), limit, steps(got.Records), got.More)
		}
	}
}

func TestDefaultLimit(t *testing.T) {
	ring := newRing(20_000)
	for range 15_000 {
		ring.Record(trace.Record{Step: trace.Sent, EDUID: "many"})
	}
	for limit, want := range map[int]int{0: trace.DefaultLimit, 1500: 1500, trace.MaxLimit: trace.MaxLimit} {
		if got := ring.Find(trace.Query{EDUID: "many", Limit: limit}); len(got.Records) != want || !got.More {
			t.Errorf("with the limit %d there are %d records, more: %t", limit, len(got.Records), got.More)
		}
	}
}

func TestQueriesWithoutAnAnswer(t *testing.T) {
	ring := newRing(10)
	ring.Record(full(), trace.Record{})
	for name, q := range map[string]trace.Query{
		"empty":                   {},
		"a limit alone":           {Limit: 5},
		"a device without a user": {Device: types.Device{DeviceID: "PHONE"}, Sender: alice},
		"a limit below zero":      {Sender: alice, Limit: -1},
		"a limit over the bound":  {Sender: alice, Limit: trace.MaxLimit + 1},
	} {
		if q.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
		if got := ring.Find(q); len(got.Records) != 0 || got.Capacity != 10 || !got.Since.Equal(began) {
			t.Errorf("%s: found is %+v", name, got)
		}
	}
	for _, q := range []trace.Query{{MessageID: "x"}, {EDUID: "x"}, {Sender: "x"}, {Device: types.Device{UserID: "x"}}, {Device: phone, Limit: trace.MaxLimit}} {
		if err := q.Check(); err != nil {
			t.Errorf("%+v: %v", q, err)
		}
	}
}
