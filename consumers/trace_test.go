package consumers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/limiter"
	"github.com/matrix-org/dendrite/todevicemodule/internal/tracetest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

func newTracedFederation(sender consumers.Sender) (*federation, *tracetest.Recorder) {
	f, told := newFederation(sender), &tracetest.Recorder{}
	f.Trace = told
	return f, told
}

// inbound is a step of an EDU of edu's for one recipient.
func inbound(step trace.Step, reason trace.Reason, edu, userID, deviceID, id string) trace.Record {
	return trace.Record{
		Step: step, Reason: reason, Recipient: types.Device{UserID: userID, DeviceID: deviceID}, Sender: "@carol:" + origin, Type: "org.example.x",
		MessageID: id, EDUID: edu, Origin: origin,
	}
}

func TestReceivedEDUsAreTraced(t *testing.T) {
	sender := &sends{}
	f, told := newTracedFederation(sender)
	edus := []json.RawMessage{
		edu("one", `{"@bob:here":{"PHONE":{"secret":1,"org.matrix.msgid":"1"},"LAPTOP":{"secret":2}}}`),
		edu("two", `{"@dan:here:8448":{"*":{"secret":3}},"@eve:elsewhere":{"D":{"secret":4,"org.matrix.msgid":"4"}},"no user":{"E":{"secret":5}}}`),
	}
	if err := f.Receive(t.Context(), origin, edus); err != nil {
		t.Fatal(err)
	}
	told.Want(t,
		inbound(trace.Accepted, "", "one", "@bob:here", "PHONE", "1"), inbound(trace.Accepted, "", "one", "@bob:here", "LAPTOP", ""),
		inbound(trace.Accepted, "", "two", "@dan:here:8448", "*", ""),
	)
	if m := sender.calls[0][0].Traced; m.EDUID != "one" || m.Origin != origin || len(m.Dropped) != 0 {
		t.Errorf("the first goes on as %+v", m)
	}
	dropped := &tracetest.Recorder{}
	dropped.Record(sender.calls[0][1].Traced.Dropped...)
	dropped.Want(t,
		inbound(trace.Dropped, trace.InvalidUser, "two", "@eve:elsewhere", "D", "4"), inbound(trace.Dropped, trace.InvalidUser, "two", "no user", "E", ""),
	)
}

func TestSkippedEDUsAreTraced(t *testing.T) {
	record := func(reason trace.Reason, sender, eventType, id string) trace.Record {
		return trace.Record{Step: trace.Dropped, Reason: reason, Sender: sender, Type: eventType, EDUID: id, Origin: origin}
	}
	const (
		carol  = "@carol:" + origin
		hidden = `{"@bob:here":{"PHONE":{"hidden":1}}}`
	)
	for name, test := range map[string]struct {
		edu  json.RawMessage
		want trace.Record
	}{
		"no object":     {json.RawMessage(`["hidden"]`), record(trace.Malformed, "", "", "")},
		"no sender":     {eduWith(`"sender":"hidden","message_id":"x"`), record(trace.Malformed, "", "", "x")},
		"spoofed":       {eduWith(`"sender":"@eve:elsewhere","message_id":"x","messages":` + hidden), record(trace.Spoofed, "@eve:elsewhere", "", "x")},
		"no type":       {eduWith(`"sender":"` + carol + `","type":["hidden"],"message_id":"x"`), record(trace.Malformed, carol, "", "x")},
		"no message_id": {eduWith(`"sender":"` + carol + `","type":"t","messages":` + hidden), record(trace.WithoutID, carol, "t", "")},
		"a long message_id": {eduWith(`"sender":"` + carol + `","type":"t","message_id":"` + strings.Repeat("hidden", 10) + `"`),
			record(trace.Malformed, carol, "t", "")},
		"no content":          {edu("x", `{"@bob:here":{"PHONE":"hidden"}}`), record(trace.Malformed, carol, "org.example.x", "x")},
		"too large":           {edu("x", `{"@bob:here":{"PHONE":{"hidden":"`+strings.Repeat("a", 1<<20)+`"}}}`), record(trace.TooLarge, "", "", "")},
		"too many recipients": {edu("x", `{"@bob:here":{`+devicesNamed(10_001)+`}}`), record(trace.TooManyTargets, carol, "org.example.x", "x")},
	} {
		t.Run(name, func(t *testing.T) {
			f, told := newTracedFederation(&sends{})
			f.MaxEDUBytes = 1 << 20
			if err := f.Receive(t.Context(), origin, []json.RawMessage{test.edu}); err != nil {
				t.Fatal(err)
			}
			told.Want(t, test.want)
			f.wantNothingLoggedOf(t, "hidden")
		})
	}
}

func devicesNamed(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(`"%x":{}`, i)
	}
	return strings.Join(all, ",")
}

// Nothing is said of an EDU that is skipped before the whole transaction is done with: it comes again.
func TestFailedEDUsAreTraced(t *testing.T) {
	sender := &sends{errors: []error{writer.ErrUnavailable}}
	f, told := newTracedFederation(sender)
	edus := []json.RawMessage{eduWith(``), edu("one", toBob)}
	if err := f.Receive(t.Context(), origin, edus); err == nil {
		t.Fatal("it was not stored")
	}
	accepted, failed := inbound(trace.Accepted, "", "one", "@bob:here", "PHONE", ""), inbound(trace.Failed, "", "one", "@bob:here", "PHONE", "")
	told.Want(t, accepted, failed)
	if err := f.Receive(t.Context(), origin, edus); err != nil {
		t.Fatal(err)
	}
	told.Want(t, accepted, trace.Record{Step: trace.Dropped, Reason: trace.Malformed, Origin: origin})
}

func TestRefusedEDUsAreTraced(t *testing.T) {
	refused := errors.New("constraint violated")
	sender := &sends{errors: []error{refused, nil, refused, writer.ErrUnavailable}}
	f, told := newTracedFederation(sender)
	var edus []json.RawMessage
	record := func(step trace.Step, reason trace.Reason, id string) trace.Record {
		return inbound(step, reason, id, "@bob:here", "PHONE", "")
	}
	want := []trace.Record{}
	for _, id := range []string{"1", "2", "3", "4"} {
		edus = append(edus, edu(id, toBob))
		want = append(want, record(trace.Accepted, "", id))
	}
	if err := f.Receive(t.Context(), origin, edus); !errors.Is(err, writer.ErrUnavailable) {
		t.Fatal(err)
	}
	told.Want(t, append(want, record(trace.Dropped, trace.DatabaseRefuses, "2"), record(trace.Failed, "", "3"), record(trace.Failed, "", "4"))...)
}

func TestKeyRequestsOverTheRateAreTraced(t *testing.T) {
	f, told := newTracedFederation(&sends{})
	var err error
	if f.KeyRequestRate, err = limiter.New[string](1e-9, 1); err != nil {
		t.Fatal(err)
	}
	request := func(id string) json.RawMessage {
		return eduWith(fmt.Sprintf(`"sender":"@carol:%s","type":"m.room_key_request","message_id":%q,"messages":{"@bob:here":{"A":{},"B":{}}}`, origin, id))
	}
	if err = f.Receive(t.Context(), origin, []json.RawMessage{request("1"), request("2")}); err != nil {
		t.Fatal(err)
	}
	record := func(step trace.Step, reason trace.Reason, id, deviceID string) trace.Record {
		r := inbound(step, reason, id, "@bob:here", deviceID, "")
		r.Type = types.RoomKeyRequest
		return r
	}
	told.Want(t, record(trace.Accepted, "", "1", "A"), record(trace.Accepted, "", "1", "B"),
		record(trace.Dropped, trace.KeyRequestRate, "2", "A"), record(trace.Dropped, trace.KeyRequestRate, "2", "B"))
}

// The whole way of an EDU into queues, on a real database; in an order in which another step can be looked for by what an earlier
// one says.
func TestEDUIsTracedIntoTheQueues(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		s.stop(t)
		told := &tracetest.Recorder{}
		log, _ := test.NewNullLogger()
		w := writer.New(writer.Options{Store: s.store, Log: logrus.NewEntry(log), Wake: func(types.Position, []writer.Wakeup) {}, Trace: told})
		if err := w.Start(s.ctx); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
		s.Sender = &writer.Sender{Directory: s.directory, Writer: w}
		s.Trace = told
		edus := []json.RawMessage{edu("one", `{"@bob:here":{"*":{"org.matrix.msgid":"1"},"GONE":{}},"@eve:elsewhere":{"D":{}},"@nobody:here":{"*":{}}}`)}
		if err := s.Receive(s.ctx, origin, edus); err != nil {
			t.Fatal(err)
		}
		accepted := []trace.Record{
			inbound(trace.Accepted, "", "one", "@bob:here", "*", "1"), inbound(trace.Accepted, "", "one", "@bob:here", "GONE", ""),
			inbound(trace.Accepted, "", "one", "@nobody:here", "*", ""),
		}
		want := append([]trace.Record{}, accepted...)
		for _, deviceID := range []string{"LAPTOP", "PHONE"} {
			r := inbound(trace.Stored, "", "one", "@bob:here", deviceID, "1")
			messages, err := s.store.Messages(s.ctx, r.Recipient, 0, 1<<62, 10, nil)
			if err != nil || len(messages) != 1 {
				t.Fatalf("%s has %v, %v", deviceID, messages, err)
			}
			r.Position = messages[0].Position
			want = append(want, r)
		}
		told.Want(t, append(want,
			inbound(trace.Dropped, trace.UnknownDevice, "one", "@bob:here", "GONE", ""),
			inbound(trace.Dropped, trace.UnknownDevice, "one", "@nobody:here", "*", ""),
			inbound(trace.Dropped, trace.InvalidUser, "one", "@eve:elsewhere", "D", ""),
		)...)
		if err := s.Receive(s.ctx, origin, edus); err != nil {
			t.Fatal(err)
		}
		told.Want(t, append(accepted,
			inbound(trace.Repeated, "", "one", "@bob:here", "LAPTOP", "1"), inbound(trace.Repeated, "", "one", "@bob:here", "PHONE", "1"),
		)...)
	})
}

func leftover(step trace.Step, reason trace.Reason, eventType string) trace.Record {
	return trace.Record{
		Step: step, Reason: reason, Recipient: entry().Device, Sender: entry().Sender, Type: eventType, Origin: "there",
	}
}

func TestLeftoversAreTraced(t *testing.T) {
	l, sender, _ := newLeftovers()
	told := &tracetest.Recorder{}
	l.Trace = told
	var entries []consumers.Entry
	for i := range 5 {
		e := entry()
		e.Type = fmt.Sprint("type ", i)
		entries = append(entries, e)
	}
	entries[0].Content = json.RawMessage(`{"org.matrix.msgid":"id","a":"the secret content"}`)
	entries[1].Content = json.RawMessage(`"the secret content"`)
	entries[2].UserID = "@bob:there"
	entries[4].Sender = "@alice:here:8448"
	sender.refuse = "type 3"
	if err := l.Receive(t.Context(), entries...); err != nil {
		t.Fatal(err)
	}
	first, ours := leftover(trace.Accepted, "", "type 0"), leftover(trace.Accepted, "", "type 4")
	first.MessageID = "id"
	ours.Sender, ours.Origin = "@alice:here:8448", ""
	told.Want(t, first, leftover(trace.Accepted, "", "type 3"), ours,
		leftover(trace.Dropped, trace.DatabaseRefuses, "type 3"), leftover(trace.Dropped, trace.Malformed, "type 1"))

	sender.err = storage.ErrTransient
	if err := l.Receive(t.Context(), entries...); err == nil {
		t.Fatal("it was not stored")
	}
	failed := []trace.Record{first, leftover(trace.Failed, "", "type 3"), ours}
	failed[0].Step, failed[2].Step = trace.Failed, trace.Failed
	told.Want(t, append([]trace.Record{first, leftover(trace.Accepted, "", "type 3"), ours}, failed...)...)
}
