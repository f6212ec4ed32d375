package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// FakeRemote is a homeserver of the test, which fails it where it is sent what breaks the rules of federation.
type FakeRemote struct{ *remote.Server }

const (
	maxEDUs     = remote.MaxEDUs
	maxEDUBytes = remote.MaxEDUBytes
)

// What a remote is sent, and how it answers.
type (
	Transaction    = remote.Transaction
	EDU            = remote.EDU
	OwnTransaction = remote.OwnTransaction
	Reply          = remote.Reply
)

var (
	accept         = remote.Accept
	acceptLate     = remote.AcceptLate
	processAndDrop = remote.ProcessAndDrop
	hang           = remote.Hang
	refuse         = remote.Refuse
	refuseByProxy  = remote.RefuseByProxy
)

// NewFakeRemote starts a remote for a server that runs, and ends it with the test.
func NewFakeRemote(t testing.TB, servers ...*Server) *FakeRemote {
	t.Helper()
	s, err := remote.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := &FakeRemote{s}
	t.Cleanup(func() {
		r.Close(t)
		r.report(t)
	})
	for _, s := range servers {
		if err = r.Learn(t.Context(), s.name); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// Open makes the remote reachable, under the address it had before.
func (r *FakeRemote) Open(t testing.TB) {
	t.Helper()
	if err := r.Server.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Close makes the remote unreachable, and cuts its connections.
func (r *FakeRemote) Close(t testing.TB) {
	t.Helper()
	if err := r.Server.Close(); err != nil {
		t.Error(err)
	}
}

// User returns the ID of a user of the remote.
func (r *FakeRemote) User(localpart string) id.UserID { return id.UserID(r.Server.User(localpart)) }

// Device returns a device of the remote, to send to.
func (r *FakeRemote) Device(localpart string, device id.DeviceID) *Client {
	return &Client{Client: &mautrix.Client{UserID: r.User(localpart), DeviceID: device}}
}

// report fails the test for what broke a rule, and shows a failed test what the remote was sent.
func (r *FakeRemote) report(t testing.TB) {
	t.Helper()
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("%s was sent:\n%s", r.Name, strings.Join(r.History(), "\n"))
	}
}

// Send sends a transaction to a server, once, and returns its answer.
func (r *FakeRemote) Send(t testing.TB, s *Server, x OwnTransaction) Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	a, err := r.Server.Send(ctx, s.name, x)
	if err != nil {
		return Answer{Err: err}
	}
	return parseAnswer(t, a.Status, a.Body)
}

// MustSend sends EDUs in a transaction, and fails the test unless the server answers 200.
func (r *FakeRemote) MustSend(t testing.TB, s *Server, txnID string, edus ...any) {
	t.Helper()
	if a := r.Send(t, s, OwnTransaction{ID: txnID, EDUs: edus}); a.Status != http.StatusOK {
		t.Fatalf("transaction %s: want 200, got %v", txnID, a)
	}
}

// Join makes a user of the remote a member of a room of a server.
func (r *FakeRemote) Join(t testing.TB, s *Server, room id.RoomID, user id.UserID) {
	t.Helper()
	if err := r.Server.Join(t.Context(), s.name, room.String(), user.String()); err != nil {
		t.Fatal(err)
	}
}

// RemoteMessage is one message that arrived at a device of a remote, or at "*".
type RemoteMessage struct {
	Event
	To        id.UserID
	Device    id.DeviceID
	MessageID string
	Arrived   time.Time
}

// Messages returns the messages that arrived, in their order.
func (r *FakeRemote) Messages() []RemoteMessage {
	arrived := r.Server.Messages()
	out := make([]RemoteMessage, len(arrived))
	for i, m := range arrived {
		out[i] = RemoteMessage{
			Event: Event{Sender: m.Sender, Type: m.Type, Content: m.Content},
			To:    id.UserID(m.UserID), Device: id.DeviceID(m.DeviceID), MessageID: m.MessageID, Arrived: m.Arrived,
		}
	}
	return out
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

// textOf returns the body of a room message, or nothing if the PDU is none.
func textOf(pdu json.RawMessage) string {
	var event struct {
		Type    string
		Content struct{ Body string }
	}
	if err := json.Unmarshal(pdu, &event); err != nil || event.Type != "m.room.message" {
		return ""
	}
	return event.Content.Body
}
