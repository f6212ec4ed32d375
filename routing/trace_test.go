package routing_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/internal/tracetest"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const secret = "the secret content"

func newTracedRoute() (*routing.SendToDevice, *recorder, *tracetest.Recorder) {
	route, sender := newRoute(usualLimits)
	told := &tracetest.Recorder{}
	route.Trace = told
	return route, sender, told
}

// content has an ID if it is not empty.
func content(id string) string {
	if id == "" {
		return fmt.Sprintf(`{"body":%q}`, secret)
	}
	return fmt.Sprintf(`{"body":%q,"org.matrix.msgid":%q}`, secret, id)
}

func accepted(userID, deviceID, id string) trace.Record {
	return trace.Record{
		Step: trace.Accepted, Recipient: types.Device{UserID: userID, DeviceID: deviceID}, Sender: alice.UserID, Type: "m.type", MessageID: id,
		TransactionID: "txn",
	}
}

func TestAcceptedIsTraced(t *testing.T) {
	route, sender, told := newTracedRoute()
	body := fmt.Sprintf(`{"messages":{
		"@bob:here":{"PHONE":%s,"LAPTOP":%s},"@all:here":{"*":%s},
		"@dan:there":{"D":%s,"E":%s},"@eve:elsewhere":{"*":%s},
		"no user":{"X":%s},"@bob:here\u0000":{"Y":%s}
	}}`, content("1"), content(""), content("3"), content("4"), content("5"), content(""), content("7"), content("8"))
	var before []trace.Record
	sender.send = func(context.Context) error { before = told.Records(); return nil }
	wantOK(t, handle(route, body))
	m := sender.messages[0]
	edus := make(map[string]storage.EDU)
	for _, edu := range m.EDUs {
		edus[edu.Destination] = edu
	}
	remote := func(userID, deviceID, id, destination string) trace.Record {
		r := accepted(userID, deviceID, id)
		r.Destination, r.EDUID = destination, edus[destination].MessageID
		return r
	}
	want := []trace.Record{
		accepted("@bob:here", "PHONE", "1"), accepted("@bob:here", "LAPTOP", ""), accepted("@all:here", "*", "3"),
		remote("@dan:there", "D", "4", "there"), remote("@dan:there", "E", "5", "there"), remote("@eve:elsewhere", "*", "", "elsewhere"),
	}
	told.Want(t, want...)
	if len(before) != len(want) || len(edus) != 2 || edus["there"].MessageID == "" {
		t.Errorf("before they were stored %d records were there; the EDUs are %v", len(before), edus)
	}
	for _, target := range m.Targets {
		if want := trace.MessageID(target.Content); target.MessageID != want {
			t.Errorf("%v goes on with the ID %q, want %q", target.Device, target.MessageID, want)
		}
	}
	dropped := &tracetest.Recorder{}
	dropped.Record(m.Traced.Dropped...)
	drop := func(userID, deviceID, id string) trace.Record {
		return trace.Record{
			Step: trace.Dropped, Reason: trace.InvalidUser, Recipient: types.Device{UserID: userID, DeviceID: deviceID}, Sender: alice.UserID,
			Type: "m.type", MessageID: id,
		}
	}
	dropped.Want(t, drop("no user", "X", "7"), drop("@bob:here\x00", "Y", "8"))
	if shown := fmt.Sprintf("%+v %+v", before, m.Traced); strings.Contains(shown, secret) {
		t.Errorf("the trace has the content: %s", shown)
	}
}

// Each EDU is told of beside the recipients that it carries.
func TestRecipientsInSeveralEDUsAreTraced(t *testing.T) {
	route, sender, told := newTracedRoute()
	var parts []string
	for i := range 10 {
		parts = append(parts, fmt.Sprintf(`"D%d":{"org.matrix.msgid":"%d","body":%q}`, i, i, strings.Repeat("x", 20<<10)))
	}
	wantOK(t, handle(route, `{"messages":{"@dan:there":{`+strings.Join(parts, ",")+`}}}`))
	edus := sender.messages[0].EDUs
	if len(edus) < 3 || len(told.Records()) != 10 {
		t.Fatalf("there are %d EDUs and %d records", len(edus), len(told.Records()))
	}
	for _, r := range told.Records() {
		for _, edu := range edus {
			carries := strings.Contains(string(edu.Content), fmt.Sprintf("%q:{", r.Recipient.DeviceID))
			if carries != (r.EDUID == edu.MessageID) {
				t.Errorf("%s is said to be in %s; %s carries it: %t", r.Recipient.DeviceID, r.EDUID, edu.MessageID, carries)
			}
		}
	}
}

func TestNotFederatingIsTraced(t *testing.T) {
	route, sender, told := newTracedRoute()
	route.Federates = false
	wantOK(t, handle(route, `{"messages":{"@dan:there":{"D":`+content("1")+`},"@bob:here":{"PHONE":{}}}}`))
	told.Want(t, accepted("@bob:here", "PHONE", ""))
	want := trace.Record{
		Step: trace.Dropped, Reason: trace.NotFederating, Recipient: types.Device{UserID: "@dan:there", DeviceID: "D"},
		Sender: alice.UserID, Type: "m.type", MessageID: "1",
	}
	if dropped := sender.messages[0].Traced.Dropped; len(dropped) != 1 || dropped[0] != want {
		t.Errorf("dropped are %+v", dropped)
	}
}

func TestFailedIsTraced(t *testing.T) {
	route, sender, told := newTracedRoute()
	sender.send = func(context.Context) error { return storage.ErrTransient }
	res := handle(route, `{"messages":{"@bob:here":{"PHONE":`+content("1")+`},"@dan:there":{"D":`+content("2")+`},"no user":{"X":{}}}}`)
	if res.Code != 503 {
		t.Fatalf("the answer is %d", res.Code)
	}
	here, there := accepted("@bob:here", "PHONE", "1"), accepted("@dan:there", "D", "2")
	there.Destination, there.EDUID = "there", sender.messages[0].EDUs[0].MessageID
	want := []trace.Record{here, there, here, there}
	want[2].Step, want[3].Step = trace.Failed, trace.Failed
	told.Want(t, want...)
}

// What is rejected was never accepted.
func TestRejectedIsNotTraced(t *testing.T) {
	route, _, told := newTracedRoute()
	for _, body := range []string{`{"messages":{"@bob:here":{"PHONE":1}}}`, `{"messages":{"@bob:here":{"PHONE":{}},"@dan:there":{"D":{"n":-0.5}}}}`} {
		if res := handle(route, body); res.Code != 400 {
			t.Fatalf("the answer is %d", res.Code)
		}
	}
	told.Want(t)
}

func TestWithoutTraceNothingIsFoundForIt(t *testing.T) {
	route, sender := newRoute(usualLimits)
	wantOK(t, handle(route, `{"messages":{"@bob:here":{"PHONE":`+content("1")+`},"@dan:there":{"D":`+content("2")+`},"no user":{"X":{}}}}`))
	m := sender.messages[0]
	if m.Traced.Dropped != nil || m.Targets[0].MessageID != "" || len(m.Targets) != 1 || len(m.EDUs) != 1 {
		t.Errorf("sent was %+v", m)
	}
}
