package consumers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/internal/limiter"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

const origin = "there.example:8448"

// sends records the calls of Send. A call whose error is set is answered with it.
type sends struct {
	calls  [][]writer.Message
	errors []error // of the first calls
}

func (s *sends) Send(_ context.Context, messages ...writer.Message) error {
	s.calls = append(s.calls, messages)
	if n := len(s.calls); n <= len(s.errors) {
		return s.errors[n-1]
	}
	return nil
}

// ids returns the message_ids of each call, as "1 2|3".
func (s *sends) ids() string {
	calls := make([]string, 0, len(s.calls))
	for _, call := range s.calls {
		ids := make([]string, 0, len(call))
		for _, m := range call {
			ids = append(ids, m.Transaction.TransactionID)
		}
		calls = append(calls, strings.Join(ids, " "))
	}
	return strings.Join(calls, "|")
}

// federation is a Federation and what it was seen to do.
type federation struct {
	consumers.Federation
	outcomes    []string
	keyRequests []string // as "sender content"
	log         *test.Hook
}

func newFederation(sender consumers.Sender) *federation {
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.TraceLevel)
	f := &federation{log: hook}
	f.Federation = consumers.Federation{
		Sender:      sender,
		IsLocal:     func(serverName string) bool { return serverName == "here" || serverName == "here:8448" },
		MaxEDUBytes: 64 << 10,
		Remember:    7 * 24 * time.Hour,
		KeyRequest: func(sender, eventType string, content json.RawMessage) {
			if eventType != "m.room_key_request" {
				sender += " with " + eventType
			}
			f.keyRequests = append(f.keyRequests, sender+" "+string(content))
		},
		Observe: func(outcome string) { f.outcomes = append(f.outcomes, outcome) },
		Log:     logrus.NewEntry(log),
	}
	return f
}

// wantNothingLoggedOf wants no line to show the content.
func (f *federation) wantNothingLoggedOf(t *testing.T, secret string) {
	t.Helper()
	for _, entry := range f.log.AllEntries() {
		if line, err := entry.String(); err != nil || strings.Contains(line, secret) {
			t.Errorf("logged was %s, %v", line, err)
		}
	}
}

func eduWith(fields string) json.RawMessage { return json.RawMessage("{" + fields + "}") }

// edu is a valid one.
func edu(id, messages string) json.RawMessage {
	return eduWith(fmt.Sprintf(`"sender":"@carol:%s","type":"org.example.x","message_id":%q,"messages":%s`, origin, id, messages))
}

const toBob = `{"@bob:here":{"PHONE":{"secret":1}}}`

func TestReceiveHandsOverEveryEDUTogether(t *testing.T) {
	sender := &sends{}
	f := newFederation(sender)
	err := f.Receive(t.Context(), origin, []json.RawMessage{
		edu("one", `{"@bob:here":{"PHONE":{ "z":1, "a":"\u0000" }}}`),
		edu("two", `{"@bob:here":{"*":{}},"@dan:here:8448":{"D":{}},"@eve:elsewhere":{"D":{}},"no user":{"D":{}},"@frank:here":{}}`),
		edu("three", `{}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := sender.ids(); got != "one two three" {
		t.Fatalf("sent was %q, want one call", got)
	}
	messages := sender.calls[0]
	for _, m := range messages {
		want := types.TransactionKey{
			Device: types.Device{UserID: origin}, EventType: "m.direct_to_device", TransactionID: m.Transaction.TransactionID,
		}
		if m.Transaction != want || m.Remember != f.Remember || m.Sender != "@carol:"+origin || m.Type != "org.example.x" || len(m.EDUs) != 0 {
			t.Errorf("sent was %+v", m)
		}
	}
	for i, want := range []string{
		`@bob:here/PHONE={ "z":1, "a":"\u0000" }`,
		`@bob:here/*={} @dan:here:8448/D={}`,
		``,
	} {
		var got []string
		for _, target := range messages[i].Targets {
			got = append(got, target.UserID+"/"+target.DeviceID+"="+string(target.Content))
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("EDU %d is for %v, want %s", i, got, want)
		}
	}
	if !slices.Equal(f.outcomes, []string{"applied", "applied", "applied"}) {
		t.Errorf("the outcomes are %v", f.outcomes)
	}
}

func TestEDUThatIsSkipped(t *testing.T) {
	const (
		sender   = `"sender":"@carol:` + origin + `",`
		typ      = `"type":"org.example.x",`
		id       = `"message_id":"bad",`
		messages = `"messages":` + toBob
	)
	long := strings.Repeat("a", 256)
	content := func(content string) string {
		return sender + typ + id + `"messages":{"@bob:here":{"PHONE":` + content + `}}`
	}
	recipients := func(n int) string {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprintf(`"%x":{}`, i)
		}
		return sender + typ + id + `"messages":{"@bob:here":{` + strings.Join(all, ",") + `}}`
	}
	for outcome, bodies := range map[string][]string{
		"spoofed": {
			`"sender":"@carol:elsewhere",` + typ + id + messages,
			`"sender":"@carol:there.example",` + typ + id + messages,
			`"sender":"@carol:THERE.example:8448",` + typ + id + messages,
			`"sender":"@carol:there.example:08448",` + typ + id + messages,
			`"sender":"@carol:evil.there.example:8448",` + typ + id + messages,
			`"sender":"@bob:here",` + typ + id + messages,
		},
		"no_message_id": {
			sender + typ + messages,
			sender + typ + `"message_id":"",` + messages,
			sender + typ + `"Message_id":"x","MESSAGE_ID":"x",` + messages,
		},
		"malformed": {
			``,
			`"content":{}`,
			typ + id + messages,
			`"sender":null,` + typ + id + messages,
			`"sender":7,` + typ + id + messages,
			`"sender":["@carol:` + origin + `"],` + typ + id + messages,
			`"sender":"carol:` + origin + `",` + typ + id + messages,
			`"sender":"@:` + origin + `",` + typ + id + messages,
			`"sender":"@carol",` + typ + id + messages,
			`"sender":"` + origin + `",` + typ + id + messages,
			`"sender":"@c\u0000:` + origin + `",` + typ + id + messages,
			`"sender":"@` + long + `:` + origin + `",` + typ + id + messages,
			`"Sender":"@carol:` + origin + `",` + typ + id + messages,
			sender + id + messages,
			sender + `"type":null,` + id + messages,
			sender + `"type":"",` + id + messages,
			sender + `"type":{},` + id + messages,
			sender + `"type":"t\u0000",` + id + messages,
			sender + `"type":"` + long + `",` + id + messages,
			sender + `"TYPE":"org.example.x",` + id + messages,
			sender + typ + `"message_id":null,` + messages,
			sender + typ + `"message_id":7,` + messages,
			sender + typ + `"message_id":"m\u0000",` + messages,
			sender + typ + `"message_id":"` + strings.Repeat("é", 33) + `",` + messages,
			sender + typ + strings.TrimSuffix(id, ","),
			sender + typ + id + `"Messages":` + toBob,
			sender + typ + id + `"messages":null`,
			sender + typ + id + `"messages":[]`,
			sender + typ + id + `"messages":"{}"`,
			sender + typ + id + `"messages":{"@bob:here":null}`,
			sender + typ + id + `"messages":{"@bob:here":[{}]}`,
			sender + typ + id + `"messages":{"@bob:here":{"D":{}},"@eve:elsewhere":[]}`,
			content(`null`), content(`[]`), content(`"{}"`), content(`1`), content(`false`),
			content(`{"k":01}`), content(`{"secret"`), content(`{}}`), content("{\"k\":\"\xff\"}"), content("{\"k\":\"\x00\"}"),
			content(strings.Repeat(`{"a":`, 101) + "1" + strings.Repeat("}", 101)),
			content(`{"a":` + strings.Repeat(`[`, 9000) + strings.Repeat("]", 9000) + `}`),
		},
		"too_large":           {content(`{"k":"` + strings.Repeat("a", 64<<10) + `"}`)},
		"too_many_recipients": {recipients(10_001)},
	} {
		for i, body := range bodies {
			t.Run(fmt.Sprint(outcome, " ", i), func(t *testing.T) {
				sender := &sends{}
				f := newFederation(sender)
				if outcome == "too_many_recipients" {
					f.MaxEDUBytes = 1 << 20
				}
				err := f.Receive(t.Context(), origin, []json.RawMessage{edu("one", toBob), eduWith(body), edu("two", toBob)})
				if err != nil || sender.ids() != "one two" {
					t.Errorf("sent was %q, %v", sender.ids(), err)
				}
				if want := []string{"applied", "applied", outcome}; !slices.Equal(f.outcomes, want) {
					t.Errorf("the outcomes are %v, want %v, for %.200s", f.outcomes, want, body)
				}
				f.wantNothingLoggedOf(t, "secret")
			})
		}
	}
}

func TestWhatIsNoObjectIsSkipped(t *testing.T) {
	for _, raw := range []string{``, ` `, `null`, `[]`, `"x"`, `{`, `{} {}`, "\xff"} {
		sender := &sends{}
		f := newFederation(sender)
		if err := f.Receive(t.Context(), origin, []json.RawMessage{json.RawMessage(raw)}); err != nil || len(sender.calls) != 0 {
			t.Errorf("%q: error %v, sent %+v", raw, err, sender.calls)
		}
		if !slices.Equal(f.outcomes, []string{"malformed"}) {
			t.Errorf("%q: the outcomes are %v", raw, f.outcomes)
		}
	}
}

// What one server may send at the most arrives, whatever it is made of.
func TestBoundsOfAnEDUAreInclusive(t *testing.T) {
	const frame = `"sender":"@carol:` + origin + `","type":"%s","message_id":"%s","messages":{"@bob:here":{%s}}`
	recipients := make([]string, 10_000)
	for i := range recipients {
		recipients[i] = fmt.Sprintf(`"%x":{}`, i)
	}
	for name, body := range map[string]json.RawMessage{
		"type":       eduWith(fmt.Sprintf(frame, strings.Repeat("t", 255), "id", "")),
		"message ID": eduWith(fmt.Sprintf(frame, "t", strings.Repeat(`\ud83d\ude00`, 32), "")),
		"depth":      eduWith(fmt.Sprintf(frame, "t", "id", `"D":`+strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100))),
		"bytes":      sized(64 << 10),
		"recipients": eduWith(fmt.Sprintf(frame, "t", "id", strings.Join(recipients, ","))),
	} {
		sender := &sends{}
		f := newFederation(sender)
		f.MaxEDUBytes = max(64<<10, len(body))
		if err := f.Receive(t.Context(), origin, []json.RawMessage{body}); err != nil || len(sender.calls) != 1 {
			t.Errorf("%s: error %v, outcomes %v", name, err, f.outcomes)
		}
	}
}

// sized is a valid EDU of so many bytes.
func sized(bytes int) json.RawMessage {
	frame := func(padding string) json.RawMessage {
		return edu("sized", `{"@bob:here":{"D":{"k":"`+padding+`"}}}`)
	}
	return frame(strings.Repeat("a", bytes-len(frame(""))))
}

// 100 EDUs of 64 KiB that are nothing but recipients are the most a server can ask for. All are stored, in
// order, but none of the commits is larger than the largest EDU.
func TestTransactionOfManyRecipients(t *testing.T) {
	const edus, bytes = 100, 64 << 10
	var recipients []string
	for size := 200; ; {
		next := fmt.Sprintf(`"%x":{}`, len(recipients))
		if size += len(next) + 1; size > bytes {
			break
		}
		recipients = append(recipients, next)
	}
	messages := `{"@bob:here":{` + strings.Join(recipients, ",") + `}}`
	var transaction []json.RawMessage
	for i := range edus {
		transaction = append(transaction, edu(fmt.Sprint(i), messages))
	}
	sender := &sends{}
	f := newFederation(sender)
	if err := f.Receive(t.Context(), origin, transaction); err != nil {
		t.Fatal(err)
	}
	stored := 0
	for _, call := range sender.calls {
		targets := 0
		for _, m := range call {
			if m.Transaction.TransactionID != fmt.Sprint(stored) || len(m.Targets) != len(recipients) {
				t.Fatalf("EDU %s with %d recipients came as number %d", m.Transaction.TransactionID, len(m.Targets), stored)
			}
			stored, targets = stored+1, targets+len(m.Targets)
		}
		if targets > 10_000 {
			t.Errorf("%d recipients were to be stored by one commit", targets)
		}
	}
	if stored != edus {
		t.Errorf("%d EDUs were stored, want %d; the outcomes are %v", stored, edus, f.outcomes)
	}
}

// After a part of a large transaction that was not stored nothing may follow it, or the order were lost.
func TestPartOfALargeTransactionIsNotStored(t *testing.T) {
	recipients := make([]string, 6000)
	for i := range recipients {
		recipients[i] = fmt.Sprintf(`"D%d":{}`, i)
	}
	messages := `{"@bob:here":{` + strings.Join(recipients, ",") + `}}`
	for failing := range 3 {
		sender := &sends{errors: make([]error, 3)}
		sender.errors[failing] = writer.ErrUnavailable
		f := newFederation(sender)
		f.MaxEDUBytes = 1 << 20
		err := f.Receive(t.Context(), origin, []json.RawMessage{edu("0", messages), edu("1", messages), edu("2", messages)})
		if !errors.Is(err, writer.ErrUnavailable) || len(sender.calls) != failing+1 {
			t.Errorf("error %v, sent was %q", err, sender.ids())
		}
	}
}

// Small EDUs of one transaction are stored by one commit, however many recipients they have together.
func TestUsualTransactionIsOneCommit(t *testing.T) {
	var transaction []json.RawMessage
	for i := range 100 {
		recipients := make([]string, 100)
		for j := range recipients {
			recipients[j] = fmt.Sprintf(`"D%d":{}`, j)
		}
		transaction = append(transaction, edu(fmt.Sprint(i), `{"@bob:here":{`+strings.Join(recipients, ",")+`}}`))
	}
	sender := &sends{}
	if err := newFederation(sender).Receive(t.Context(), origin, transaction); err != nil || len(sender.calls) != 1 || len(sender.calls[0]) != 100 {
		t.Errorf("sent was %q, %v", sender.ids(), err)
	}
}

func TestNothingToStoreAsksNobody(t *testing.T) {
	sender := &sends{errors: []error{errors.New("asked")}}
	if err := newFederation(sender).Receive(t.Context(), origin, nil); err != nil || len(sender.calls) != 0 {
		t.Errorf("sent was %+v, %v", sender.calls, err)
	}
}

func TestTransactionThatIsNotStored(t *testing.T) {
	for _, err := range []error{writer.ErrUnavailable, writer.ErrStopped, storage.ErrTransient} {
		sender := &sends{errors: []error{fmt.Errorf("storing: %w", err)}}
		f := newFederation(sender)
		got := f.Receive(t.Context(), origin, []json.RawMessage{edu("one", toBob), eduWith(``), keyRequest("two", "D")})
		if !errors.Is(got, err) || sender.ids() != "one two" {
			t.Errorf("%v: the server would not send it again: %v, sent was %q", err, got, sender.ids())
		}
		if len(f.outcomes) != 0 || len(f.keyRequests) != 0 {
			t.Errorf("the outcomes are %v, the key requests %v", f.outcomes, f.keyRequests)
		}
	}
}

// An error that the end of the request brought about says nothing of the messages.
func TestRequestThatEndsIsNotRefused(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	failure := errors.New("interrupted")
	for _, before := range [][]error{{failure}, {errors.New("constraint violated"), failure}} {
		sender := &sends{errors: before}
		if err := newFederation(sender).Receive(ctx, origin, []json.RawMessage{edu("one", toBob)}); err == nil {
			t.Errorf("after %v the message is lost", before)
		}
	}
}

func TestEDUThatTheDatabaseRefusesIsDroppedAlone(t *testing.T) {
	refused := errors.New("constraint violated")
	sender := &sends{errors: []error{refused, nil, refused, nil}}
	f := newFederation(sender)
	transaction := []json.RawMessage{edu("one", toBob), edu("two", toBob), keyRequest("three", "D")}
	if err := f.Receive(t.Context(), origin, transaction); err != nil {
		t.Fatalf("the server would send for ever what can't be stored: %v", err)
	}
	if sender.ids() != "one two three|one|two|three" {
		t.Errorf("sent was %q", sender.ids())
	}
	if want := []string{"applied", "refused", "applied"}; !slices.Equal(f.outcomes, want) || len(f.keyRequests) != 1 {
		t.Errorf("the outcomes are %v, want %v; the key requests are %v", f.outcomes, want, f.keyRequests)
	}
	f.wantNothingLoggedOf(t, "secret")
	if line, err := f.log.LastEntry().String(); err != nil || !strings.Contains(line, "message_id=two") || !strings.Contains(line, "@carol:"+origin) {
		t.Errorf("logged was %s, %v", line, err)
	}
}

func TestDatabaseGoesAwayWhileEDUsAreStoredOneByOne(t *testing.T) {
	refused := errors.New("constraint violated")
	sender := &sends{errors: []error{refused, nil, writer.ErrStopped}}
	f := newFederation(sender)
	err := f.Receive(t.Context(), origin, []json.RawMessage{edu("one", toBob), edu("two", toBob), edu("three", toBob)})
	if !errors.Is(err, writer.ErrStopped) || sender.ids() != "one two three|one|two" {
		t.Errorf("error %v, sent was %q", err, sender.ids())
	}
	if !slices.Equal(f.outcomes, []string{"applied"}) {
		t.Errorf("the outcomes are %v", f.outcomes)
	}
}

func keyRequest(id, deviceID string) json.RawMessage {
	return eduWith(fmt.Sprintf(`"sender":"@carol:%s","type":"m.room_key_request","message_id":%q,`+
		`"messages":{"@bob:here":{"B":{"requesting_device_id":%q},"A":{"requesting_device_id":%[3]q,"to":"A"}},"@eve:elsewhere":{"A":{}}}`,
		origin, id, deviceID))
}

func TestKeyRequestIsToldOncePerEDU(t *testing.T) {
	f := newFederation(&sends{})
	err := f.Receive(t.Context(), origin, []json.RawMessage{
		keyRequest("one", "D1"), edu("two", toBob), keyRequest("three", "D2"),
		eduWith(`"sender":"@carol:` + origin + `","type":"m.room_key_request","message_id":"four","messages":{"@eve:elsewhere":{"A":{}}}`),
	})
	want := []string{
		`@carol:` + origin + ` {"requesting_device_id":"D1","to":"A"}`,
		`@carol:` + origin + ` {"requesting_device_id":"D2","to":"A"}`,
	}
	if err != nil || !slices.Equal(f.keyRequests, want) {
		t.Errorf("error %v, the key requests are %v, want %v", err, f.keyRequests, want)
	}
}

func TestFederationWithoutHooks(t *testing.T) {
	f := newFederation(&sends{})
	f.Observe, f.KeyRequest = nil, nil
	if err := f.Receive(t.Context(), origin, []json.RawMessage{keyRequest("one", "D"), eduWith(``)}); err != nil {
		t.Error(err)
	}
}

func TestOriginLimit(t *testing.T) {
	sender := &sends{}
	f := newFederation(sender)
	var err error
	if f.Origins, err = limiter.New[string](1e-9, 3); err != nil {
		t.Fatal(err)
	}
	receive := func(origin string, ids ...string) error {
		var edus []json.RawMessage
		for _, id := range ids {
			edus = append(edus, json.RawMessage(strings.ReplaceAll(string(edu(id, toBob)), "there.example:8448", origin)))
		}
		return f.Receive(t.Context(), origin, edus)
	}
	if err = receive(origin, "1", "2"); err != nil {
		t.Fatal(err)
	}
	if err = receive(origin, "3", "4"); !errors.Is(err, consumers.ErrLimitExceeded) {
		t.Errorf("the error is %v", err)
	}
	if err = receive("elsewhere", "5", "6", "7"); err != nil {
		t.Errorf("another server: %v", err)
	}
	if err = receive(origin, "3"); err != nil {
		t.Errorf("within the limit again: %v", err)
	}
	if got := sender.ids(); got != "1 2|5 6 7|3" {
		t.Errorf("stored are %s", got)
	}
}

// The devices that the contents name are the sender's invention, and count for nothing.
func TestKeyRequestRateOfARemoteUser(t *testing.T) {
	sender := &sends{}
	f := newFederation(sender)
	var err error
	if f.KeyRequestRate, err = limiter.New[string](1e-9, 2); err != nil {
		t.Fatal(err)
	}
	request := func(id, user, device string) json.RawMessage {
		return eduWith(fmt.Sprintf(`"sender":"@%s:%s","type":"m.room_key_request","message_id":%q,"messages":{"@bob:here":{"*":{"requesting_device_id":%q}}}`, user, origin, id, device))
	}
	edus := []json.RawMessage{
		request("1", "carol", "A"), request("2", "carol", "B"), request("3", "carol", "C"), edu("4", toBob), request("5", "dan", "A"), request("6", "carol", ""),
	}
	if err = f.Receive(t.Context(), origin, edus); err != nil {
		t.Fatal(err)
	}
	if got := sender.ids(); got != "1 2 4 5" {
		t.Errorf("stored are %s", got)
	}
	if dropped := slices.Index(f.outcomes, consumers.EDUKeyRequestRate); dropped < 0 || len(f.outcomes) != len(edus) {
		t.Errorf("the outcomes are %v", f.outcomes)
	}
	if len(f.keyRequests) != 3 {
		t.Errorf("looked after were %v", f.keyRequests)
	}
}

// After an error the same EDUs come again, and all of them are taken that would have been at first, whatever was stored already.
func TestKeyRequestsThatAreNotStoredCountForNothing(t *testing.T) {
	sender := &sends{errors: []error{writer.ErrUnavailable, nil, writer.ErrUnavailable}}
	f := newFederation(sender)
	var err error
	if f.KeyRequestRate, err = limiter.New[string](1e-9, 2); err != nil {
		t.Fatal(err)
	}
	many := make([]string, 6000)
	for i := range many {
		many[i] = fmt.Sprintf(`"%d":{}`, i)
	}
	request := func(id string) json.RawMessage { // two of them are too many recipients for one commit
		return eduWith(fmt.Sprintf(`"sender":"@carol:%s","type":"m.room_key_request","message_id":%q,"messages":{"@bob:here":{%s}}`, origin, id, strings.Join(many, ",")))
	}
	edus := []json.RawMessage{request("1"), request("2"), request("3")}
	for range 2 {
		if err = f.Receive(t.Context(), origin, edus); !errors.Is(err, writer.ErrUnavailable) {
			t.Errorf("the error is %v", err)
		}
	}
	for range 2 {
		if err = f.Receive(t.Context(), origin, edus); err != nil {
			t.Error(err)
		}
	}
	if got := sender.ids(); got != "1|1|2|1|2" {
		t.Errorf("to be stored were %s", got)
	}
}
