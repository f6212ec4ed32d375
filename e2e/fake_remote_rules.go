package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib"
)

// The limits of the server-server API: of a transaction, of an EDU that could have been two, and of a
// message_id.
const (
	maxPDUs           = 50
	maxEDUs           = 100
	maxEDUBytes       = 64 << 10
	maxMessageIDRunes = 32
)

// controlType is that of an EDU without messages: after a refusal it asks whether the destination takes
// anything.
const controlType = "org.matrix.dendrite.todevice.nothing"

// rules finds what a server may not do in its transactions. The lock is the remote's.
type rules struct {
	name       string            // of the remote
	contents   map[string]string // by transaction ID: its PDUs and EDUs
	bodies     map[string]string // by transaction ID: all of it
	messageIDs map[string]string // by message_id: its EDU
	faults     []string
}

func newRules(name string) rules {
	return rules{name: name, contents: map[string]string{}, bodies: map[string]string{}, messageIDs: map[string]string{}}
}

func (r *rules) fault(format string, args ...any) {
	r.faults = append(r.faults, fmt.Sprintf(format, args...))
}

// check looks at a transaction that was not refused for its signature.
func (r *rules) check(x *Transaction) {
	switch {
	case len(x.PDUs)+len(x.EDUs) == 0:
		r.fault("transaction %s is empty", x.ID)
	case len(x.PDUs) > maxPDUs:
		r.fault("transaction %s has %d PDUs", x.ID, len(x.PDUs))
	case len(x.EDUs) > maxEDUs:
		r.fault("transaction %s has %d EDUs", x.ID, len(x.EDUs))
	}
	var content strings.Builder
	for _, pdu := range x.PDUs {
		content.Write(canonical(pdu))
	}
	for _, edu := range x.EDUs {
		content.Write(canonical(edu.Raw))
		if edu.ToDevice != nil {
			r.checkToDevice(x, edu)
		}
	}
	// A receiver that knows the ID processes nothing of what is new in it.
	key, body := x.Origin+" "+x.ID, string(canonical(x.Body))
	switch before, ok := r.contents[key]; {
	case ok && before != content.String():
		r.fault("transaction %s came with two contents: %.300s ... and %.300s ...", x.ID, before, content.String())
	case ok && r.bodies[key] != body:
		r.fault("transaction %s came with two bodies: %.100s ... and %.100s ...", x.ID, r.bodies[key], body)
	}
	r.contents[key], r.bodies[key] = content.String(), body
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
	size := len(canonical(edu.Raw))
	switch {
	case messages == 0 && d.Type != controlType:
		fault("no messages")
	case messages > 1 && size > maxEDUBytes:
		fault("%d messages in an EDU of %d bytes", messages, size)
	}
	key, raw := x.Origin+" "+d.MessageID, string(canonical(edu.Raw))
	if before, ok := r.messageIDs[key]; ok && before != raw {
		fault("it stands for two EDUs: %.300s ... and %.300s ...", before, raw)
	}
	r.messageIDs[key] = raw
}

// canonical returns the canonical JSON of a document that was parsed before.
func canonical(document json.RawMessage) []byte {
	out, err := gomatrixserverlib.CanonicalJSON(document)
	if err != nil {
		panic(err)
	}
	return out
}
