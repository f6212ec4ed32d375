package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// inbox is what a remote was sent. The lock is the remote's.
type inbox struct {
	transactions []*Transaction
	processed    map[string]bool // transaction IDs, with their origin
	applied      map[string]bool // message_ids, with their origin
	messages     []RemoteMessage
	pdus         []json.RawMessage
	others       []EDU
	history      []string
}

// RemoteMessage is one message that arrived at a device of a remote, or at "*".
type RemoteMessage struct {
	Event
	To        id.UserID
	Device    id.DeviceID
	MessageID string
	Arrived   time.Time
}

func newInbox() inbox { return inbox{processed: map[string]bool{}, applied: map[string]bool{}} }

// add records a transaction, and what arrived with it.
func (in *inbox) add(x *Transaction, reply Reply) {
	in.transactions = append(in.transactions, x)
	again := in.processed[x.Origin+" "+x.ID]
	in.note("%s: %s with %d PDUs and %d EDUs, %d bytes; seen before: %v, reply: %+v", now(), x.ID, len(x.PDUs), len(x.EDUs), len(x.Body), again, reply)
	if !reply.Process || again {
		return
	}
	in.processed[x.Origin+" "+x.ID] = true
	in.pdus = append(in.pdus, x.PDUs...)
	for _, edu := range x.EDUs {
		if edu.ToDevice == nil {
			in.others = append(in.others, edu)
			continue
		}
		if key := x.Origin + " " + edu.ToDevice.MessageID; !in.applied[key] {
			in.applied[key] = true
			in.apply(x, edu.ToDevice)
		}
	}
}

// apply delivers an EDU. The devices of one EDU have no order, so they get one.
func (in *inbox) apply(x *Transaction, edu *ToDeviceEDU) {
	for _, user := range slices.Sorted(maps.Keys(edu.Messages)) {
		for _, device := range slices.Sorted(maps.Keys(edu.Messages[user])) {
			in.messages = append(in.messages, RemoteMessage{
				Event:     Event{Sender: edu.Sender, Type: edu.Type, Content: edu.Messages[user][device]},
				To:        id.UserID(user),
				Device:    id.DeviceID(device),
				MessageID: edu.MessageID,
				Arrived:   x.Arrived,
			})
		}
	}
}

// note keeps a line for whoever looks at a failed test.
func (in *inbox) note(format string, args ...any) {
	const enough = 200
	if len(in.history) < enough {
		in.history = append(in.history, fmt.Sprintf(format, args...))
	}
}

// Transactions returns every transaction that came, processed or not.
func (r *FakeRemote) Transactions() []*Transaction {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.transactions)
}

// Messages returns the messages that arrived, in their order.
func (r *FakeRemote) Messages() []RemoteMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

// Others returns the PDUs that arrived, and the EDUs that are not for devices.
func (r *FakeRemote) Others() (pdus []json.RawMessage, edus []EDU) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pdus), slices.Clone(r.others)
}

// AwaitTransactions waits until n transactions came, processed or not.
func (r *FakeRemote) AwaitTransactions(t testing.TB, n int) {
	t.Helper()
	within(t, time.Minute, fmt.Sprintf("%s is sent %d transactions", r.Name, n), func() (bool, any) {
		got := len(r.Transactions())
		return got >= n, got
	})
}

// Receive waits until n messages arrived, for as long as was promised, and returns all.
func (r *FakeRemote) Receive(t testing.TB, n int, promised time.Duration) []RemoteMessage {
	t.Helper()
	var got []RemoteMessage
	within(t, promised, fmt.Sprintf("%d messages arrive at %s", n, r.Name), func() (bool, any) {
		got = r.Messages()
		return len(got) >= n, fmt.Sprint(len(got), " messages")
	})
	return got
}

// WantNumbers waits until the messages 0 to n-1 arrived, and fails the test unless they came once and
// in order.
func (r *FakeRemote) WantNumbers(t testing.TB, n int, promised time.Duration) {
	t.Helper()
	wantNumbers(t, numbers(t, events(r.Receive(t, n, promised))), 0, n)
}

// WantTexts waits until room messages arrived, and fails the test unless they are these. The host may
// send a room event twice, under another transaction ID: it is known by its own.
func (r *FakeRemote) WantTexts(t *testing.T, promised time.Duration, want ...string) {
	t.Helper()
	within(t, promised, fmt.Sprintf("the room messages arrive at %s", r.Name), func() (bool, any) {
		pdus, _ := r.Others()
		var got []string
		for _, pdu := range pdus {
			if text := textOf(pdu); text != "" && !slices.Contains(got, text) {
				got = append(got, text)
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want), got
	})
}

func events(messages []RemoteMessage) []Event {
	out := make([]Event, len(messages))
	for i, m := range messages {
		out[i] = m.Event
	}
	return out
}
