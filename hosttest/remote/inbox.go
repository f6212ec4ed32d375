package remote

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// inbox is what a server was sent. The lock is the server's.
type inbox struct {
	transactions []*Transaction
	processed    map[string]bool // transaction IDs, with their origin
	applied      map[string]bool // message_ids, with their origin
	messages     []Message
	pdus         []json.RawMessage
	others       []EDU
	history      []string
}

// Message is one message that arrived at a device of a server, or at "*".
type Message struct {
	Sender, Type      string
	Content           json.RawMessage
	UserID, DeviceID  string // the receiver's
	Origin, MessageID string // of the EDU
	Arrived           time.Time
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
			in.messages = append(in.messages, Message{
				Sender: edu.Sender, Type: edu.Type, Content: edu.Messages[user][device], UserID: user, DeviceID: device,
				Origin: x.Origin, MessageID: edu.MessageID, Arrived: x.Arrived,
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

func now() string { return time.Now().Format("15:04:05.000") }

// Transactions returns every transaction that came, processed or not, in their order.
func (s *Server) Transactions() []*Transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.transactions)
}

// Messages returns the messages that arrived, in their order.
func (s *Server) Messages() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// Others returns the PDUs that arrived, and the EDUs that are not for devices.
func (s *Server) Others() (pdus []json.RawMessage, edus []EDU) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pdus), slices.Clone(s.others)
}

// History returns a line for each of the first transactions, for whoever looks at a failed test. No content is in it.
func (s *Server) History() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.history)
}
