package consumers

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// maxMessageIDRunes is the specification's bound of a message_id, in codepoints.
const maxMessageIDRunes = 32

// parse returns what one EDU says, or the outcome for which it is passed over whole, and then of the message what is known
// to be valid, for the trace. Users of other servers, and what is no user ID, are left out of the targets.
func (f *Federation) parse(origin string, raw json.RawMessage) (m writer.Message, outcome string) {
	m.Traced.Origin = origin
	if len(raw) > f.MaxEDUBytes {
		return m, EDUTooLarge
	}
	value, _ := wire.Parse(raw)
	fields, ok := value.Object()
	if !ok {
		return m, EDUMalformed
	}
	messageID, noMessageID := parseMessageID(fields)
	m.Traced.EDUID = messageID
	sender, _ := fields["sender"].String()
	server, valid := wire.ServerOf(sender)
	if !valid {
		return m, EDUMalformed
	}
	m.Sender = sender
	if server != origin || f.IsLocal(server) { // no other server speaks for this one's users
		return m, EDUSpoofed
	}
	eventType, _ := fields["type"].String()
	if eventType == "" || len(eventType) > maxTypeBytes || strings.ContainsRune(eventType, 0) {
		return m, EDUMalformed
	}
	m.Type = eventType
	if noMessageID != "" {
		return m, noMessageID
	}
	if outcome = f.parseMessages(&m, fields["messages"]); outcome != "" {
		return m, outcome
	}
	// It can't be the key of a client's transaction, since a server's name is no user ID.
	m.Transaction = types.TransactionKey{
		Device:        types.Device{UserID: origin},
		EventType:     spec.MDirectToDevice,
		TransactionID: messageID,
	}
	m.Remember = f.Remember
	return m, ""
}

func parseMessageID(fields map[string]wire.Valid) (messageID, outcome string) {
	raw, there := fields["message_id"]
	if !there {
		return "", EDUWithoutMessageID
	}
	messageID, ok := raw.String()
	switch {
	case !ok || utf8.RuneCountInString(messageID) > maxMessageIDRunes || strings.ContainsRune(messageID, 0):
		return "", EDUMalformed
	case messageID == "":
		return "", EDUWithoutMessageID
	}
	return messageID, ""
}

// parseMessages adds the targets.
func (f *Federation) parseMessages(m *writer.Message, messages wire.Valid) (outcome string) {
	users, ok := messages.Object()
	if !ok {
		return EDUMalformed
	}
	var targets []devices.Target
	named := 0
	for userID, part := range users {
		contents, ok := part.Object()
		if !ok {
			return EDUMalformed
		}
		if named += len(contents); named > maxRecipients {
			return EDUTooManyRecipients
		}
		server, valid := wire.ServerOf(userID)
		ours := valid && f.IsLocal(server)
		for deviceID, value := range contents {
			content := []byte(value)
			if content[0] != '{' || types.IsTooDeep(content) {
				return EDUMalformed
			}
			target := devices.Target{Device: types.Device{UserID: userID, DeviceID: deviceID}, Content: content}
			if f.Trace != nil {
				target.MessageID = trace.MessageID(content)
			}
			if ours {
				targets = append(targets, target)
			} else if f.Trace != nil {
				m.Traced.Dropped = append(m.Traced.Dropped, m.Record(trace.Dropped, trace.InvalidUser, target))
			}
		}
	}
	m.Targets = targets
	return ""
}
