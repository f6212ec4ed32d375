package remote

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The limits of the server-server API.
const (
	MaxPDUs           = 50       // in a transaction
	MaxEDUs           = 100      // in a transaction
	MaxEDUBytes       = 64 << 10 // of an EDU that could have been two
	maxMessageIDRunes = 32
)

// controlType is that of an EDU without messages: after a refusal it asks whether the destination takes
// anything.
const controlType = "org.matrix.dendrite.todevice.nothing"

// maxFaultsTold bounds what Err says.
const maxFaultsTold = 10

// rules finds what a server may not do in its transactions. The lock is the Server's.
type rules struct {
	name       string            // of the receiver
	contents   map[string]string // by transaction ID: its PDUs and EDUs
	bodies     map[string]string // by transaction ID: all of it
	messageIDs map[string]string // by message_id: its EDU
	faults     []error
}

func newRules(name string) rules {
	return rules{name: name, contents: map[string]string{}, bodies: map[string]string{}, messageIDs: map[string]string{}}
}

func (r *rules) fault(format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf(format, args...))
}

// check looks at a transaction that was not refused for its signature.
func (r *rules) check(x *Transaction) {
	switch {
	case len(x.PDUs)+len(x.EDUs) == 0:
		r.fault("transaction %s is empty", x.ID)
	case len(x.PDUs) > MaxPDUs:
		r.fault("transaction %s has %d PDUs", x.ID, len(x.PDUs))
	case len(x.EDUs) > MaxEDUs:
		r.fault("transaction %s has %d EDUs", x.ID, len(x.EDUs))
	}
	for _, edu := range x.EDUs {
		if edu.ToDevice != nil {
			r.checkToDevice(x, edu)
		}
	}
	// A receiver that knows the ID processes nothing of what is new in it.
	key := x.Origin + " " + x.ID
	switch before, ok := r.contents[key]; {
	case ok && before != x.content:
		r.fault("transaction %s came with two contents: %.300s ... and %.300s ...", x.ID, before, x.content)
	case ok && r.bodies[key] != x.canonical:
		r.fault("transaction %s came with two bodies: %.100s ... and %.100s ...", x.ID, r.bodies[key], x.canonical)
	}
	r.contents[key], r.bodies[key] = x.content, x.canonical
}

func (r *rules) checkToDevice(x *Transaction, edu EDU) {
	d := edu.ToDevice
	fault := func(format string, args ...any) {
		r.fault("transaction %s, message_id %q: %s", x.ID, d.MessageID, fmt.Sprintf(format, args...))
	}
	if n := utf8.RuneCountInString(d.MessageID); n == 0 || n > maxMessageIDRunes {
		fault("a message_id of %d characters", n)
	}
	if !strings.HasSuffix(d.Sender, ":"+x.Origin) || d.Type == "" {
		fault("sender %q and type %q, from %s", d.Sender, d.Type, x.Origin)
	}
	messages := 0
	for user, devices := range d.Messages {
		if !strings.HasSuffix(user, ":"+r.name) {
			fault("a message for %s", user)
		}
		messages += len(devices)
	}
	size := len(edu.canonical)
	switch {
	case messages == 0 && d.Type != controlType:
		fault("no messages")
	case messages > 1 && size > MaxEDUBytes:
		fault("%d messages in an EDU of %d bytes", messages, size)
	}
	key := x.Origin + " " + d.MessageID
	if before, ok := r.messageIDs[key]; ok && before != edu.canonical {
		fault("it stands for two EDUs: %.300s ... and %.300s ...", before, edu.canonical)
	}
	r.messageIDs[key] = edu.canonical
}

func (s *Server) noteFault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault(format, args...)
}

// Err returns what the server was sent that breaks the rules of the server-server API, or nil: signatures that are not good, transactions that are
// malformed, empty or too large, an ID or a message_id that stood for two things, or a transaction that came before the last one was answered.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i, fault := range s.faults {
		if i == maxFaultsTold {
			errs = append(errs, fmt.Errorf("%s: and %d faults more", s.Name, len(s.faults)-i))
			break
		}
		errs = append(errs, fmt.Errorf("%s: %w", s.Name, fault))
	}
	return errors.Join(errs...)
}
