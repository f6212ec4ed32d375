package routing_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/internal/bodies"
	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

var alice = types.Device{UserID: "@alice:here", DeviceID: "PHONE"}

// recorder is the rest of the module: it keeps what it is handed and answers err.
type recorder struct {
	messages []writer.Message
	send     func(ctx context.Context) error
}

func (r *recorder) Send(ctx context.Context, messages ...writer.Message) error {
	r.messages = append(r.messages, messages...)
	if r.send != nil {
		return r.send(ctx)
	}
	return nil
}

// contents returns the one message's content for each device, as "user/device".
func (r *recorder) contents(t *testing.T) map[string]string {
	t.Helper()
	if len(r.messages) != 1 {
		t.Fatalf("%d messages were sent, want one", len(r.messages))
	}
	contents := make(map[string]string)
	for _, target := range r.messages[0].Targets {
		contents[target.UserID+"/"+target.DeviceID] = string(target.Content)
	}
	return contents
}

func newRoute(limits routing.Limits) (*routing.SendToDevice, *recorder) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	sender := &recorder{}
	return &routing.SendToDevice{
		Sender:    sender,
		IsLocal:   func(serverName string) bool { return serverName == "here" || serverName == "here:8448" },
		Federates: true,
		Limits:    limits,
		Remember:  time.Hour,
		Timeout:   time.Minute,
		Log:       logrus.NewEntry(log),
	}, sender
}

var usualLimits = routing.Limits{MessageBytes: 64 << 10, RequestBytes: 10 << 20}

func put(body io.Reader) *http.Request {
	return httptest.NewRequest(http.MethodPut, "/sendToDevice/m.type/txn", body)
}

func handle(route *routing.SendToDevice, body string) util.JSONResponse {
	return route.Handle(put(strings.NewReader(body)), alice, "m.type", "txn")
}

// wantRefusal also checks that nothing was sent: what is rejected stores nothing.
func wantRefusal(t *testing.T, res util.JSONResponse, sender *recorder, status int, code spec.MatrixErrorCode, mentions ...string) {
	t.Helper()
	refusal, ok := res.JSON.(spec.MatrixError)
	if !ok || res.Code != status || refusal.ErrCode != code {
		t.Fatalf("the answer is %d %#v, want %d %s", res.Code, res.JSON, status, code)
	}
	for _, mention := range mentions {
		if !strings.Contains(refusal.Err, mention) {
			t.Errorf("the error does not name %s: %s", mention, refusal.Err)
		}
	}
	if len(sender.messages) != 0 {
		t.Errorf("the sender was called with %+v", sender.messages)
	}
}

func wantOK(t *testing.T, res util.JSONResponse) {
	t.Helper()
	if res.Code != http.StatusOK {
		t.Fatalf("the answer is %d %#v, want 200", res.Code, res.JSON)
	}
	if body, err := json.Marshal(res.JSON); err != nil || string(body) != "{}" {
		t.Errorf("the answer's body is %s, %v, want {}", body, err)
	}
}

func TestRefusedBodies(t *testing.T) {
	const (
		notJSON = spec.ErrorNotJSON
		badJSON = spec.ErrorBadJSON
		missing = spec.ErrorMissingParam
		invalid = spec.ErrorInvalidParam
	)
	tests := []struct {
		body     string
		code     spec.MatrixErrorCode
		mentions []string
	}{
		{``, notJSON, nil},
		{` `, notJSON, nil},
		{`{`, notJSON, nil},
		{`hello`, notJSON, nil},
		{`{'messages':{}}`, notJSON, nil},
		{`{"messages":{}} {}`, notJSON, nil},
		{`{"messages":{"@bob:here":{"D":{"k":01}}}}`, notJSON, nil},
		{"{\"messages\":{\"@bob:here\":{\"D\":{\"k\":\"\x00\"}}}}", notJSON, nil},

		{`[]`, badJSON, []string{"object"}},
		{`[{"messages":{}}]`, badJSON, []string{"object"}},
		{`null`, badJSON, []string{"object"}},
		{`"messages"`, badJSON, []string{"object"}},
		{`5`, badJSON, []string{"object"}},
		{`true`, badJSON, []string{"object"}},

		{`{"messages":null}`, badJSON, []string{`"messages"`}},
		{`{"messages":[]}`, badJSON, []string{`"messages"`}},
		{`{"messages":"{}"}`, badJSON, []string{`"messages"`}},
		{`{"messages":{"@bob:here":null}}`, badJSON, []string{`messages["@bob:here"]`}},
		{`{"messages":{"@bob:here":[]}}`, badJSON, []string{`messages["@bob:here"]`}},
		{`{"messages":{"@bob:here":"D"}}`, badJSON, []string{`messages["@bob:here"]`}},
		{`{"messages":{"@bob:here":{"D":{}},"@eve:here":7}}`, badJSON, []string{`messages["@eve:here"]`}},
		{`{"messages":{"no user ID":7}}`, badJSON, []string{`messages["no user ID"]`}},
		{`{"messages":{"@bob:here":{"D":null}}}`, badJSON, []string{`messages["@bob:here"]["D"]`}},
		{`{"messages":{"@bob:here":{"D":[]}}}`, badJSON, []string{`messages["@bob:here"]["D"]`}},
		{`{"messages":{"@bob:here":{"D":"{}"}}}`, badJSON, []string{`messages["@bob:here"]["D"]`}},
		{`{"messages":{"@bob:here":{"D":{},"*":1}}}`, badJSON, []string{`messages["@bob:here"]["*"]`}},
		{`{"messages":{"@bob:there":{"D":false}}}`, badJSON, []string{`messages["@bob:there"]["D"]`}},

		{`{}`, missing, []string{`"messages"`}},
		{`{"Messages":{}}`, missing, []string{`"messages"`}},
		{`{"MESSAGES":{"@bob:here":{"D":{}}}}`, missing, []string{`"messages"`}},
		{`{"content":{"messages":{}}}`, missing, []string{`"messages"`}},

		{"{\"messages\":{\"@bob:here\":{\"D\":{\"k\":\"\xff\"}}}}", invalid, []string{"UTF-8"}},
		{"{\"messages\":{\"@bob:here\":{\"\xc3\x28\":{}}}}", invalid, []string{"UTF-8"}},
	}
	for _, test := range tests {
		t.Run(test.body, func(t *testing.T) {
			route, sender := newRoute(usualLimits)
			wantRefusal(t, handle(route, test.body), sender, http.StatusBadRequest, test.code, test.mentions...)
		})
	}
}

func TestAcceptedIsHandedOverAsItCame(t *testing.T) {
	contents := map[string]string{
		"ONE":   `{"z":1,"a":{"org.matrix.msgid":"x"},"big":123456789012345678901234567890,"f":1.0e+3,"neg":-0}`,
		"TWO":   "{ \"space\" :\t[ 1 ,2 ]\r\n}",
		"THREE": `{"nul":"\u0000","lone":"\ud800","slash":"\/","html":"<&>","dup":1,"dup":2}`,
		"*":     `{}`,
		"":      `{"for":"nobody"}`,
	}
	var parts []string
	for deviceID, content := range contents {
		parts = append(parts, fmt.Sprintf("%q : %s ", deviceID, content))
	}
	route, sender := newRoute(usualLimits)
	wantOK(t, handle(route, `{"messages":{"@bob:here":{`+strings.Join(parts, ",")+`}},"unknown":[]}`))

	got := sender.contents(t)
	for deviceID, content := range contents {
		if got["@bob:here/"+deviceID] != content {
			t.Errorf("the content for %q is %s, want %s", deviceID, got["@bob:here/"+deviceID], content)
		}
	}
	if len(got) != len(contents) {
		t.Errorf("the targets are %v", got)
	}
	m := sender.messages[0]
	key := types.TransactionKey{Device: alice, EventType: "m.type", TransactionID: "txn"}
	if m.Sender != alice.UserID || m.Type != "m.type" || m.Transaction != key {
		t.Errorf("the message is from %s with type %s and transaction %+v", m.Sender, m.Type, m.Transaction)
	}
}

func TestOfDuplicateKeysTheLastCounts(t *testing.T) {
	route, sender := newRoute(routing.Limits{MessageBytes: 20, RequestBytes: 1 << 10})
	wantOK(t, handle(route, `{"messages":null,"messages":{
		"@bob:here":{"D":{"n":1}},
		"@bob:here":{"D":{"long":"`+strings.Repeat("x", 50)+`"},"E":{},"D":{"n":2}}}}`))
	got := sender.contents(t)
	if len(got) != 2 || got["@bob:here/D"] != `{"n":2}` || got["@bob:here/E"] != `{}` {
		t.Errorf("the targets are %v", got)
	}
}

func TestNobodyToSendToIsStillSent(t *testing.T) {
	// Its transaction has to be recorded, so that its repetition finds the same devices.
	for _, body := range []string{`{"messages":{}}`, `{"messages":{"@bob:here":{}}}`, `{"messages":{"@bob:there":{}}}`, `{"messages":{"bob":{"D":{}}}}`} {
		route, sender := newRoute(usualLimits)
		wantOK(t, handle(route, body))
		if got := sender.contents(t); len(got) != 0 {
			t.Errorf("%s: the targets are %v", body, got)
		}
	}
}

func TestInvalidUserIDsAreSkipped(t *testing.T) {
	tooLong := "@" + strings.Repeat("a", 250) + ":here" // 256 bytes
	longest := "@" + strings.Repeat("a", 249) + ":here"
	invalid := []string{"", "@", "@:", "bob", "bob:here", "@bob", "@bob:", "@:here", "#bob:here", `@b\u0000b:here`, tooLong, `\ud800@bob:here`}
	var parts []string
	for _, userID := range append(invalid, longest, "@bob:here", "@bob:here:8448") {
		parts = append(parts, `"`+userID+`":{"D":{}}`)
	}
	route, sender := newRoute(usualLimits)
	wantOK(t, handle(route, `{"messages":{`+strings.Join(parts, ",")+`}}`))
	got := sender.contents(t)
	for _, userID := range []string{longest, "@bob:here", "@bob:here:8448"} {
		if _, ok := got[userID+"/D"]; !ok {
			t.Errorf("%s was skipped", userID)
		}
	}
	if len(got) != 3 {
		t.Errorf("the targets are %v", got)
	}
}

func TestUsersOfOtherServers(t *testing.T) {
	const body = `{"messages":{"@bob:here":{"D":{"to":"bob"}},"@carol:there":{"*":{"b":1,"a":1e0}},"@dan:elsewhere":{"P\u0000":{},"Q":{}}}}`
	route, sender := newRoute(usualLimits)
	wantOK(t, handle(route, body))
	if got := sender.contents(t); len(got) != 1 || got["@bob:here/D"] == "" {
		t.Errorf("the local targets are %v", got)
	}
	m := sender.messages[0]
	sent := make(map[string]string)
	for _, edu := range m.EDUs {
		if edu.Origin != "here" {
			t.Errorf("the origin is %q", edu.Origin)
		}
		sent[edu.Destination] = strings.ReplaceAll(string(edu.Content), edu.MessageID, "ID")
	}
	want := map[string]string{
		"there":     `{"message_id":"ID","messages":{"@carol:there":{"*":{"a":1,"b":1}}},"sender":"@alice:here","type":"m.type"}`,
		"elsewhere": `{"message_id":"ID","messages":{"@dan:elsewhere":{"Q":{}}},"sender":"@alice:here","type":"m.type"}`,
	}
	if !maps.Equal(sent, want) || len(m.EDUs) != len(want) {
		t.Errorf("the EDUs are %v, want %v", sent, want)
	}
	if m.Remember != time.Hour {
		t.Errorf("the transaction is remembered for %s", m.Remember)
	}
}

func TestUsersOfOtherServersWithoutFederation(t *testing.T) {
	route, sender := newRoute(usualLimits)
	route.Federates = false
	wantOK(t, handle(route, `{"messages":{"@bob:here":{"D":{}},"@carol:there":{"*":{}}}}`))
	if m := sender.messages[0]; len(m.Targets) != 1 || len(m.EDUs) != 0 {
		t.Errorf("the message is %+v", m)
	}
}

func TestNumbersThatCannotBeSent(t *testing.T) {
	route, sender := newRoute(usualLimits)
	wantOK(t, handle(route, `{"messages":{"@bob:here":{"D":{"n":-0.5}}}}`))
	sender.messages = nil
	res := handle(route, `{"messages":{"@bob:here":{"D":{}},"@carol:there":{"P":{"n":-0.5}}}}`)
	wantRefusal(t, res, sender, http.StatusBadRequest, spec.ErrorBadJSON, "@carol:there", "P")
}

func TestContentLimit(t *testing.T) {
	tests := []struct {
		name, content string
		canonical     int
	}{
		{"plain", `{"k":"vvvvvvvvvv"}`, 18},
		{"space", "{  \"k\" :\n\t\"vvvvvvvvvv\"  }", 18},
		{"escapes", `{"\u006b":"\u0076\u0076vvvvvvvv"}`, 18},
		{"slashes", `{"k":"\/\/\/\/\/\/\/\/\/\/"}`, 18},
		{"surrogates", `{"k":"\ud83d\ude00\ud83d\ude00vv"}`, 18},
		{"control characters", `{"k":"\u0000\u000avv"}`, 18},
		{"no ASCII", `{"k":"äääää"}`, 18},
		{"order", `{"b":"vvvvv","a":1}`, 19},
		{"duplicate keys", `{"k":1,"k":2,"k":3}`, 19},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			body := `{"messages":{"@bob:here":{"SMALL":{}, "D":` + test.content + `},"@eve:here":{"E":{}}}}`

			route, sender := newRoute(routing.Limits{MessageBytes: test.canonical, RequestBytes: 1 << 10})
			wantOK(t, handle(route, body))
			if got := sender.contents(t)["@bob:here/D"]; got != test.content {
				t.Errorf("the content is %s, want %s", got, test.content)
			}

			route, sender = newRoute(routing.Limits{MessageBytes: test.canonical - 1, RequestBytes: 1 << 10})
			wantRefusal(t, handle(route, body), sender, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", `"@bob:here"`, `"D"`)
		})
	}
}

// countingReader counts what is read of an endless body.
type countingReader struct{ n int }

func (r *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	r.n += len(p)
	return len(p), nil
}

func TestBodyLimit(t *testing.T) {
	const limit = 1000
	limits := routing.Limits{MessageBytes: limit, RequestBytes: limit}
	wantTooLarge := func(t *testing.T, req *http.Request, mostRead int, body *countingReader) {
		t.Helper()
		route, sender := newRoute(limits)
		res := route.Handle(req, alice, "m.type", "txn")
		wantRefusal(t, res, sender, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "1000 bytes")
		if body.n > mostRead {
			t.Errorf("%d bytes were read, want at most %d", body.n, mostRead)
		}
	}
	t.Run("announced", func(t *testing.T) {
		body := &countingReader{}
		req := put(body)
		req.ContentLength = limit + 1
		wantTooLarge(t, req, 0, body)
	})
	t.Run("chunked", func(t *testing.T) {
		body := &countingReader{}
		req := put(body)
		req.ContentLength = -1
		wantTooLarge(t, req, limit+1, body)
	})
	t.Run("at the limit", func(t *testing.T) {
		body := `{"messages":{}}` + strings.Repeat(" ", limit)
		for _, length := range []int64{limit, -1} {
			route, _ := newRoute(limits)
			req := put(strings.NewReader(body[:limit]))
			req.ContentLength = length
			wantOK(t, route.Handle(req, alice, "m.type", "txn"))
		}
	})
}

func TestBodyThatBreaksOff(t *testing.T) {
	route, sender := newRoute(usualLimits)
	req := put(io.MultiReader(strings.NewReader(`{"messages":{}}`), iotest.ErrReader(io.ErrUnexpectedEOF)))
	wantRefusal(t, route.Handle(req, alice, "m.type", "txn"), sender, http.StatusServiceUnavailable, spec.ErrorUnknown)
}

func TestPath(t *testing.T) {
	longest := strings.Repeat("ä", 127) + "a" // 255 bytes
	for _, value := range []string{"a", "\x01", "/ %00", "\u2028", longest} {
		route, sender := newRoute(usualLimits)
		wantOK(t, route.Handle(put(strings.NewReader(`{"messages":{}}`)), alice, value, value))
		key := types.TransactionKey{Device: alice, EventType: value, TransactionID: value}
		if m := sender.messages[0]; m.Type != value || m.Transaction != key {
			t.Errorf("the message has type %q and transaction %+v", m.Type, m.Transaction)
		}
	}
	for _, value := range []string{longest + "a", "\x00", "a\x00b", "\xff", "a\xc3"} {
		body := &countingReader{}
		route, sender := newRoute(usualLimits)
		wantRefusal(t, route.Handle(put(body), alice, value, "txn"), sender, http.StatusBadRequest, spec.ErrorInvalidParam, "event type")
		wantRefusal(t, route.Handle(put(body), alice, "m.type", value), sender, http.StatusBadRequest, spec.ErrorInvalidParam, "transaction ID")
		if body.n > 0 {
			t.Errorf("%q: the body was read", value)
		}
	}
}

func TestSenderWhoseTransactionsCannotBeStored(t *testing.T) {
	for _, deviceID := range []string{strings.Repeat("D", 2000), "\xff", "a\x00b"} {
		route, sender := newRoute(usualLimits)
		device := types.Device{UserID: alice.UserID, DeviceID: deviceID}
		res := route.Handle(put(strings.NewReader(`{"messages":{}}`)), device, "m.type", "txn")
		wantRefusal(t, res, sender, http.StatusBadRequest, spec.ErrorInvalidParam, "device ID")
	}
}

func TestRecipientLimit(t *testing.T) {
	const most = 10_000
	devices := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"D%d":{}`, i)
		}
		return strings.TrimPrefix(b.String(), ",")
	}
	route, sender := newRoute(usualLimits)
	wantOK(t, handle(route, `{"messages":{"@bob:here":{`+devices(most/2)+`},"@eve:here":{`+devices(most/2)+`}}}`))
	if got := sender.contents(t); len(got) != most {
		t.Errorf("%d devices were sent to", len(got))
	}
	route, sender = newRoute(usualLimits)
	res := handle(route, `{"messages":{"@bob:here":{`+devices(most/2)+`},"@eve:here":{`+devices(most/2+1)+`}}}`)
	wantRefusal(t, res, sender, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "10000 users or devices")
}

func TestDeepJSON(t *testing.T) {
	nested := func(levels int, inner string) string {
		return strings.Repeat(`{"a":`, levels) + inner + strings.Repeat(`}`, levels)
	}
	body := func(content string) string { return `{"messages":{"@bob:here":{"D":` + content + `}}}` }

	t.Run("as deep as may be", func(t *testing.T) {
		route, sender := newRoute(usualLimits)
		content := nested(types.MaxContentDepth, "1")
		wantOK(t, handle(route, body(content)))
		if sender.contents(t)["@bob:here/D"] != content {
			t.Error("the content was changed")
		}
	})
	t.Run("a level too deep", func(t *testing.T) {
		route, sender := newRoute(usualLimits)
		content := nested(types.MaxContentDepth+1, "1")
		wantRefusal(t, handle(route, body(content)), sender, http.StatusBadRequest, spec.ErrorBadJSON, `"@bob:here"`, `"D"`)
	})
	t.Run("too deep to parse", func(t *testing.T) {
		route, sender := newRoute(usualLimits)
		wantRefusal(t, handle(route, body(nested(500_000, "1"))), sender, http.StatusBadRequest, spec.ErrorNotJSON)
	})
	// Sorting the keys of such a content copies it once for each level.
	t.Run("deep and large", func(t *testing.T) {
		route, sender := newRoute(usualLimits)
		request := body(nested(types.MaxContentDepth, `"`+strings.Repeat("x", 100_000)+`"`))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		res := handle(route, request)
		runtime.ReadMemStats(&after)
		wantRefusal(t, res, sender, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", `"@bob:here"`, `"D"`)
		if used := after.TotalAlloc - before.TotalAlloc; used > 50*uint64(len(request)) {
			t.Errorf("%d bytes were allocated for a request of %d", used, len(request))
		}
	})
}

func TestFailuresOfTheSender(t *testing.T) {
	const secret = "the secret content"
	cause := func(err error) error { return fmt.Errorf("storing %q: %w", secret, err) }
	retryable := map[string]error{
		"unavailable": writer.ErrUnavailable,
		"stopped":     writer.ErrStopped,
		"transient":   storage.ErrTransient,
		"deadline":    context.DeadlineExceeded,
		"cancelled":   context.Canceled,
	}
	final := map[string]error{
		"fenced": storage.ErrFenced,
		"stale":  writer.ErrStale,
		"locked": storage.ErrLocked,
		"other":  errors.New("constraint violated"),
	}
	check := func(t *testing.T, err error, status int, retryAfter bool) {
		route, sender := newRoute(usualLimits)
		sender.send = func(context.Context) error { return cause(err) }
		res := handle(route, `{"messages":{"@bob:here":{"D":{"k":"`+secret+`"}}}}`)
		if res.Code != status || (res.Headers["Retry-After"] != "") != retryAfter {
			t.Errorf("the answer is %d with headers %v, want %d", res.Code, res.Headers, status)
		}
		answer, marshalErr := json.Marshal(res.JSON)
		if marshalErr != nil || bytes.Contains(answer, []byte(secret)) || bytes.Contains(answer, []byte(err.Error())) {
			t.Errorf("the answer is %s, %v", answer, marshalErr)
		}
		if refusal, ok := res.JSON.(spec.MatrixError); !ok || refusal.ErrCode != spec.ErrorUnknown || refusal.Err == "" {
			t.Errorf("the answer is %#v", res.JSON)
		}
	}
	for name, err := range retryable {
		t.Run(name, func(t *testing.T) { check(t, err, http.StatusServiceUnavailable, true) })
	}
	for name, err := range final {
		t.Run(name, func(t *testing.T) { check(t, err, http.StatusInternalServerError, false) })
	}
}

func TestTimeout(t *testing.T) {
	route, sender := newRoute(usualLimits)
	route.Timeout = time.Millisecond
	sender.send = func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	if res := handle(route, `{"messages":{}}`); res.Code != http.StatusServiceUnavailable {
		t.Errorf("the answer is %d, want 503", res.Code)
	}
}

// What can't be stored for so many devices never will be: the client is to send something else.
func TestMessageForTooManyDevices(t *testing.T) {
	route, sender := newRoute(usualLimits)
	sender.send = func(context.Context) error { return fmt.Errorf("sending: %w", writer.ErrTooManyCopies) }
	res := handle(route, `{"messages":{"@bob:here":{"*":{}}}}`)
	sender.messages = nil
	wantRefusal(t, res, sender, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "all devices")
}

// A request that finds no room is to come again; afterwards its room is given back.
func TestRequestWithoutRoom(t *testing.T) {
	const most = 1 << 20
	route, sender := newRoute(usualLimits)
	route.Bodies = bodies.NewRoom(most, 20*time.Millisecond)
	other, err := route.Bodies.Read(t.Context(), strings.NewReader(strings.Repeat(" ", most)), most, most)
	if err != nil {
		t.Fatal(err)
	}
	large := `{"messages":{"@bob:here":{"D":{}}}}` + strings.Repeat(" ", 100<<10)
	res := handle(route, large)
	wantRefusal(t, res, sender, http.StatusServiceUnavailable, spec.ErrorUnknown, "again")
	if res.Headers["Retry-After"] == "" || res.Headers["Connection"] != "close" {
		t.Errorf("the headers are %v", res.Headers)
	}
	wantOK(t, handle(route, `{"messages":{"@bob:here":{"D":{}}}}`)) // small ones have room of their own
	other.Release()
	wantOK(t, handle(route, large))
	if held := route.Bodies.Held(); held != 0 {
		t.Errorf("%d bytes are held once all is answered", held)
	}
}
