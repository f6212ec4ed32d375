package consumers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/internal/tracetest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

type recorder struct {
	calls    int
	messages []writer.Message // those that were accepted, and those refused by err
	err      error
	refuse   string // an event type the database does not accept
}

func (r *recorder) Send(_ context.Context, messages ...writer.Message) error {
	r.calls++
	for _, m := range messages {
		if m.Type == r.refuse {
			return errors.New("constraint violated")
		}
	}
	r.messages = append(r.messages, messages...)
	return r.err
}

func newLeftovers() (*consumers.Leftovers, *recorder, *test.Hook) {
	log, hook := test.NewNullLogger()
	sender := &recorder{}
	return &consumers.Leftovers{
		Sender:  sender,
		IsLocal: func(serverName string) bool { return serverName == "here:8448" },
		Log:     logrus.NewEntry(log),
	}, sender, hook
}

func entry() consumers.Entry {
	return consumers.Entry{
		Stream: "DendriteOutputSendToDeviceEvent", Sequence: 7, Timestamp: time.Unix(1700000000, 5),
		Device:  types.Device{UserID: "@bob:here:8448", DeviceID: "PHONE"},
		Sender:  "@carol:there",
		Type:    "m.room.encrypted",
		Content: json.RawMessage(`{ "z":1, "a":"the secret content" }`),
	}
}

func TestReceiveHandsOverTheEntry(t *testing.T) {
	l, sender, _ := newLeftovers()
	if err := l.Receive(t.Context(), entry()); err != nil {
		t.Fatal(err)
	}
	if len(sender.messages) != 1 || len(sender.messages[0].Targets) != 1 {
		t.Fatalf("sent were %+v", sender.messages)
	}
	m := sender.messages[0]
	if m.Remember != 365*24*time.Hour {
		t.Errorf("the entry is remembered for %s", m.Remember)
	}
	if m.Sender != "@carol:there" || m.Type != "m.room.encrypted" || m.Targets[0].Device != entry().Device ||
		string(m.Targets[0].Content) != string(entry().Content) {
		t.Errorf("sent was %+v", m)
	}
}

func TestEntryForAnotherServerIsPassedOver(t *testing.T) {
	for _, userID := range []string{"@bob:there", "@bob:here", "@bob", ""} {
		l, sender, hook := newLeftovers()
		e := entry()
		e.UserID = userID
		if err := l.Receive(t.Context(), e); err != nil || sender.calls != 0 || len(hook.AllEntries()) != 0 {
			t.Errorf("%q: error %v, sent %+v", userID, err, sender.messages)
		}
	}
}

// What the host can't read is nobody's, and is told of all the same.
func TestUnreadableEntryIsDropped(t *testing.T) {
	l, sender, hook := newLeftovers()
	told := &tracetest.Recorder{}
	l.Trace = told
	unreadable := consumers.Entry{Stream: entry().Stream, Sequence: 6, Timestamp: entry().Timestamp, Unreadable: true}
	if err := l.Receive(t.Context(), unreadable, entry()); err != nil {
		t.Fatal(err)
	}
	if len(sender.messages) != 1 || sender.messages[0].Type != entry().Type {
		t.Errorf("sent were %+v", sender.messages)
	}
	told.Want(t, leftover(trace.Accepted, "", entry().Type), trace.Record{Step: trace.Dropped, Reason: trace.Malformed})
	if line := hook.LastEntry(); line == nil || line.Level != logrus.ErrorLevel || line.Data["sequence"] != uint64(6) {
		t.Errorf("logged was %v", line)
	}
}

func TestEntriesAreStoredTogetherInTheirOrder(t *testing.T) {
	l, sender, hook := newLeftovers()
	entries := make([]consumers.Entry, 6)
	for i := range entries {
		entries[i] = entry()
		entries[i].Sequence = uint64(i)
		entries[i].Type = fmt.Sprint("type ", i)
	}
	entries[1].UserID = "@doorbell:there"
	entries[1].Type = "org.matrix.dendrite.todevice.doorbell"
	entries[4].Content = json.RawMessage(`broken`)
	if err := l.Receive(t.Context(), entries...); err != nil {
		t.Fatal(err)
	}
	wantTypes(t, sender, 0, 2, 3, 5)
	if sender.calls != 1 || len(hook.AllEntries()) != 1 {
		t.Errorf("stored in %d steps, %d lines were logged", sender.calls, len(hook.AllEntries()))
	}
	keys := map[types.TransactionKey]bool{}
	for _, m := range sender.messages {
		keys[m.Transaction] = true
	}
	if len(keys) != 4 {
		t.Errorf("four entries have %d keys", len(keys))
	}
}

func wantTypes(t *testing.T, sender *recorder, want ...int) {
	t.Helper()
	got := make([]string, 0, len(sender.messages))
	for _, m := range sender.messages {
		got = append(got, strings.TrimPrefix(m.Type, "type "))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("sent were %v, want %v", got, want)
	}
}

func TestRefusedEntryDoesNotTakeTheOthersWithIt(t *testing.T) {
	l, sender, hook := newLeftovers()
	sender.refuse = "type 1"
	entries := make([]consumers.Entry, 4)
	for i := range entries {
		entries[i] = entry()
		entries[i].Type = fmt.Sprint("type ", i)
	}
	var told []string
	l.KeyRequest = func(_, eventType string, _ json.RawMessage) { told = append(told, eventType) }
	if err := l.Receive(t.Context(), entries...); err != nil {
		t.Fatal(err)
	}
	wantTypes(t, sender, 0, 2, 3)
	wantLogged(t, hook)
	if len(told) != 3 {
		t.Errorf("told were %v, want the three that are stored", told)
	}

	sender.err = storage.ErrTransient
	if err := l.Receive(t.Context(), entries...); !errors.Is(err, storage.ErrTransient) {
		t.Errorf("the host would not offer the entries again: %v", err)
	}
}

func TestKeyRequestIsToldOfAfterItIsStored(t *testing.T) {
	l, sender, _ := newLeftovers()
	told := 0
	l.KeyRequest = func(senderID, eventType string, content json.RawMessage) {
		told++
		if senderID != entry().Sender || eventType != entry().Type || string(content) != string(entry().Content) {
			t.Errorf("told was %s %s %s", senderID, eventType, content)
		}
		if len(sender.messages) != 1 {
			t.Error("the message is not stored yet")
		}
	}
	if err := l.Receive(t.Context(), entry()); err != nil || told != 1 {
		t.Errorf("error %v, told %d times, want once", err, told)
	}
	sender.err = writer.ErrUnavailable
	remote := entry()
	remote.UserID = "@bob:there"
	if err := l.Receive(t.Context(), remote); err != nil {
		t.Error(err)
	}
	if err := l.Receive(t.Context(), entry()); err == nil || told != 1 {
		t.Errorf("error %v, told %d times, of a message that is not stored", err, told)
	}
}

func TestEntryThatCanNeverBeStoredIsDroppedAndLogged(t *testing.T) {
	for name, damage := range map[string]func(*consumers.Entry){
		"user ID with NUL":    func(e *consumers.Entry) { e.UserID = "@b\x00b:here:8448" },
		"user ID too long":    func(e *consumers.Entry) { e.UserID = "@" + strings.Repeat("b", 255) + ":here:8448" },
		"device ID not UTF-8": func(e *consumers.Entry) { e.DeviceID = "\xff" },
		"device ID too long":  func(e *consumers.Entry) { e.DeviceID = strings.Repeat("D", 256) },
		"sender with NUL":     func(e *consumers.Entry) { e.Sender = "@carol\x00:there" },
		"type not UTF-8":      func(e *consumers.Entry) { e.Type = "\xc3(" },
		"type too long":       func(e *consumers.Entry) { e.Type = strings.Repeat("t", 256) },
		"no content":          func(e *consumers.Entry) { e.Content = nil },
		"content null":        func(e *consumers.Entry) { e.Content = json.RawMessage(`null`) },
		"content an array":    func(e *consumers.Entry) { e.Content = json.RawMessage(`["the secret content"]`) },
		"content broken":      func(e *consumers.Entry) { e.Content = json.RawMessage(`{"k":"the secret content"`) },
		"content not UTF-8":   func(e *consumers.Entry) { e.Content = json.RawMessage("{\"the secret content\":\"\xff\"}") },
		"content nested too deep": func(e *consumers.Entry) {
			e.Content = json.RawMessage(strings.Repeat(`{"a":`, 101) + "1" + strings.Repeat("}", 101))
		},
		"content with more behind": func(e *consumers.Entry) { e.Content = json.RawMessage(`{} {}`) },
	} {
		t.Run(name, func(t *testing.T) {
			l, sender, hook := newLeftovers()
			e := entry()
			damage(&e)
			if err := l.Receive(t.Context(), e); err != nil || len(sender.messages) != 0 {
				t.Errorf("error %v, sent %+v", err, sender.messages)
			}
			wantLogged(t, hook)
		})
	}
}

// wantLogged wants one line, which names the entry but not its content.
func wantLogged(t *testing.T, hook *test.Hook) {
	t.Helper()
	if len(hook.AllEntries()) != 1 {
		t.Fatalf("%d lines were logged, want one", len(hook.AllEntries()))
	}
	line, err := hook.LastEntry().String()
	if err != nil || !strings.Contains(line, "sequence=7") || strings.Contains(line, "secret") {
		t.Errorf("logged was %s, %v", line, err)
	}
}

func TestBoundsAreInclusive(t *testing.T) {
	l, sender, _ := newLeftovers()
	e := entry()
	e.UserID = "@" + strings.Repeat("b", 244) + ":here:8448" // 255 bytes
	e.DeviceID, e.Type = strings.Repeat("D", 255), strings.Repeat("t", 255)
	e.Content = json.RawMessage(`{"nul":"\u0000"}`)
	if err := l.Receive(t.Context(), e); err != nil || len(sender.messages) != 1 {
		t.Errorf("error %v, sent %d messages", err, len(sender.messages))
	}
}

func TestFailureOfTheSender(t *testing.T) {
	for _, err := range []error{writer.ErrUnavailable, writer.ErrStopped, storage.ErrTransient} {
		l, sender, _ := newLeftovers()
		sender.err = fmt.Errorf("storing: %w", err)
		if got := l.Receive(t.Context(), entry()); !errors.Is(got, err) {
			t.Errorf("%v: the host would not offer the entry again: %v", err, got)
		}
	}
	l, sender, hook := newLeftovers()
	sender.err = errors.New("constraint violated")
	if err := l.Receive(t.Context(), entry()); err != nil {
		t.Errorf("the host would offer an entry again that can't be stored: %v", err)
	}
	wantLogged(t, hook)
}

func TestEachEntryHasOneKey(t *testing.T) {
	key := func(change func(*consumers.Entry)) types.TransactionKey {
		l, sender, _ := newLeftovers()
		e := entry()
		change(&e)
		if err := l.Receive(t.Context(), e); err != nil || len(sender.messages) != 1 {
			t.Fatalf("error %v, sent %+v", err, sender.messages)
		}
		return sender.messages[0].Transaction
	}
	first := key(func(*consumers.Entry) {})
	if first == (types.TransactionKey{}) || strings.HasPrefix(first.UserID, "@") || first.EventType != "" {
		t.Errorf("%+v may be the key of a client's transaction or of another server's message", first)
	}
	if again := key(func(e *consumers.Entry) { e.Timestamp = e.Timestamp.In(time.FixedZone("", 3600)) }); again != first {
		t.Errorf("the same entry has the keys %+v and %+v", first, again)
	}
	for name, change := range map[string]func(*consumers.Entry){
		"sequence":  func(e *consumers.Entry) { e.Sequence++ },
		"timestamp": func(e *consumers.Entry) { e.Timestamp = e.Timestamp.Add(1) },
		"stream":    func(e *consumers.Entry) { e.Stream += "2" },
	} {
		if other := key(change); other == first {
			t.Errorf("entries of another %s have the same key %+v", name, other)
		}
	}
}
