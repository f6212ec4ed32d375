package e2e

import (
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

// tracer looks at a server's trace as an administrator.
type tracer struct {
	*AdminAPI
}

func newTracer(t testing.TB, s *Server) tracer {
	t.Helper()
	return tracer{NewAdminAPI(s, RegisterAdmin(t, s).AccessToken)}
}

// find returns the steps that a query finds, and their names with their reasons.
func (tr tracer) find(t testing.TB, query url.Values) (records []admin.Record, steps []string) {
	t.Helper()
	var found admin.Trace
	tr.Call(t, "GET", "/trace", nil, query.Encode(), http.StatusOK, &found)
	for i := range found.Records {
		steps = append(steps, strings.TrimSuffix(found.Records[i].Step+" "+found.Records[i].Reason, " "))
	}
	return found.Records, steps
}

// want waits until a query finds the given steps.
func (tr tracer) want(t testing.TB, query url.Values, want ...string) (records []admin.Record) {
	t.Helper()
	eventually(t, "the trace of "+query.Encode()+" is "+strings.Join(want, ", "), func() (bool, any) {
		var steps []string
		records, steps = tr.find(t, query)
		return slices.Equal(steps, want), records
	})
	return records
}

// span is the time that something took, to the millisecond.
type span struct{ from, to int64 }

func during(action func()) (s span) {
	s.from = time.Now().UnixMilli()
	action()
	s.to = time.Now().UnixMilli()
	return s
}

func (s span) wantAround(t testing.TB, r admin.Record) {
	t.Helper()
	if r.TS < s.from || r.TS > s.to {
		t.Errorf("%s is said to have been at %d, it was from %d to %d", r.Step, r.TS, s.from, s.to)
	}
}

// tracedSite is a server and another one that it federates with.
type tracedSite struct {
	here, there               *Server
	traceHere, traceThere     tracer
	alice, bob, carol, nobody *Client // nobody is a device of bob's that does not exist
}

func newTracedSite(t *testing.T, b Backend) *tracedSite {
	t.Helper()
	here, there := StartPair(t, b, Options{LogLevel: "debug"}, Options{LogLevel: "debug"})
	site := &tracedSite{here: here, there: there, traceHere: newTracer(t, here), traceThere: newTracer(t, there)}
	site.alice, site.bob, site.carol = Register(t, here, "alice"), Register(t, here, "bob"), Register(t, there, "carol")
	site.nobody = newClient(t, here).as(site.bob.UserID, "NOSUCHDEVICE", "")
	return site
}

// Did the server get it, and did it hand it over? With each answer the time at which it was so.
func TestTrace(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		site := newTracedSite(t, b)
		site.offline(t)
		site.unknownDevice(t)
		site.toRemote(t)
		wantNoContent(t, site.here)
		wantNoContent(t, site.there)
	})
}

// A device is offline while a message comes, fetches it later, and acknowledges it later still.
func (site *tracedSite) offline(t *testing.T) {
	t.Helper()
	since, messageID := site.bob.Settle(t, ""), unique("msgid")
	query := url.Values{"message_id": {messageID}}
	site.traceHere.want(t, query)

	sent := during(func() { site.alice.Send(t, "m.test", To(withMessageID(messageID), site.bob)) })
	site.traceHere.want(t, query, "accepted", "stored")
	var next string
	handedOver := during(func() { next = site.bob.Sync(t, Sync{Since: since}).NextBatch })
	site.traceHere.want(t, query, "accepted", "stored", "handed_over")
	acknowledged := during(func() {
		site.bob.Settle(t, next)
		site.traceHere.want(t, query, "accepted", "stored", "handed_over", "acknowledged")
	})
	// Later acknowledgements are not this message's.
	site.alice.Send(t, "m.test", To(withMessageID(unique("msgid")), site.bob))
	site.bob.Settle(t, site.bob.Sync(t, Sync{Since: next}).NextBatch)

	records := site.traceHere.want(t, query, "accepted", "stored", "handed_over", "acknowledged")
	for i, at := range []span{sent, sent, handedOver, acknowledged} {
		r := records[i]
		at.wantAround(t, r)
		if r.UserID != site.bob.UserID.String() || r.DeviceID != site.bob.DeviceID.String() {
			t.Errorf("%s is of %s %s", r.Step, r.UserID, r.DeviceID)
		}
		if r.Step != "acknowledged" && (r.Sender != site.alice.UserID.String() || r.Type != "m.test" || r.MessageID != messageID) {
			t.Errorf("%s is of %+v", r.Step, r)
		}
	}
	if stored := records[1].Position; stored == 0 || records[2].Position != stored || records[3].Position < stored {
		t.Errorf("the positions are %d, %d and %d", stored, records[2].Position, records[3].Position)
	}
	device := url.Values{"user_id": {site.bob.UserID.String()}, "device_id": {site.bob.DeviceID.String()}}
	bySender := url.Values{"sender": {site.alice.UserID.String()}}
	for _, other := range []url.Values{device, bySender} {
		found, _ := site.traceHere.find(t, other)
		for _, r := range records {
			if !slices.Contains(found, r) {
				t.Errorf("%s does not find %+v", other.Encode(), r)
			}
		}
	}
	site.wantLogged(t, site.here, messageID, "step=accepted", "step=stored", "step=handed_over")
}

func (site *tracedSite) unknownDevice(t *testing.T) {
	t.Helper()
	messageID := unique("msgid")
	sent := during(func() { site.alice.Send(t, "m.test", To(withMessageID(messageID), site.nobody)) })
	records := site.traceHere.want(t, url.Values{"message_id": {messageID}}, "accepted", "dropped unknown_device")
	for _, r := range records {
		sent.wantAround(t, r)
		if r.UserID != site.nobody.UserID.String() || id.DeviceID(r.DeviceID) != site.nobody.DeviceID || r.Sender != site.alice.UserID.String() {
			t.Errorf("%s is of %+v", r.Step, r)
		}
	}
	site.wantLogged(t, site.here, messageID, "step=dropped", "reason=unknown_device")
}

// By the ID of the EDU both servers tell of the same message.
func (site *tracedSite) toRemote(t *testing.T) {
	t.Helper()
	since, messageID := site.carol.Settle(t, ""), unique("msgid")
	query := url.Values{"message_id": {messageID}}
	sending := during(func() {
		site.alice.Send(t, "m.test", To(withMessageID(messageID), site.carol))
		site.traceHere.want(t, query, "accepted", "stored", "sent")
	})
	records := site.traceHere.want(t, query, "accepted", "stored", "sent")
	edu := records[0].EDUID
	for _, r := range records {
		sending.wantAround(t, r)
		if r.Destination != site.there.name || r.EDUID != edu || edu == "" {
			t.Errorf("%s is of %+v", r.Step, r)
		}
	}
	if records[1].Position == 0 || records[2].Position != records[1].Position {
		t.Errorf("the positions are %d and %d", records[1].Position, records[2].Position)
	}
	if found := site.traceHere.want(t, url.Values{"edu_id": {edu}}, "accepted", "stored", "sent"); !slices.Equal(found, records) {
		t.Errorf("by the EDU there is %+v, by the message %+v", found, records)
	}
	site.wantLogged(t, site.here, edu, "step=accepted", "step=stored", "step=sent")

	_, since = site.carol.Receive(t, since, 1)
	site.carol.Settle(t, since)
	there := site.traceThere.want(t, query, "accepted", "stored", "handed_over", "acknowledged")
	if found := site.traceThere.want(t, url.Values{"edu_id": {edu}}, "accepted", "stored", "handed_over", "acknowledged"); !slices.Equal(found, there) {
		t.Errorf("by the EDU there is %+v, by the message %+v", found, there)
	}
	if there[0].Origin != site.here.name || there[0].EDUID != edu {
		t.Errorf("there it began with %+v", there[0])
	}
}

// wantLogged wants each of the marks in a line of the log that names the ID.
func (site *tracedSite) wantLogged(t *testing.T, s *Server, messageID string, marks ...string) {
	t.Helper()
	log, err := os.ReadFile(s.path("server.log"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "to_device: trace") && strings.Contains(line, messageID) {
			lines = append(lines, line)
		}
	}
	for _, mark := range marks {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, mark) }) {
			t.Errorf("no line with %s and %s in\n%s", messageID, mark, strings.Join(lines, ""))
		}
	}
}
