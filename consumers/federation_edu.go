package consumers

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/internal/wire"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// maxMessageIDRunes is the specification's bound of a message_id, in codepoints.
const maxMessageIDRunes = 32

// parse returns what one EDU says, or the outcome for which it is passed over whole. Users of other
// servers, and what is no user ID, are left out of the targets.
func (f *Federation) parse(origin string, raw json.RawMessage) (writer.Message, string) {
	refuse := func(outcome string) (writer.Message, string) { return writer.Message{}, outcome }
	if len(raw) > f.MaxEDUBytes {
		return refuse(EDUTooLarge)
	}
	fields, ok := wire.Object(raw)
	if !ok || !utf8.Valid(raw) {
		return refuse(EDUMalformed)
	}
	sender, _ := wire.String(fields["sender"])
	server, valid := wire.ServerOf(sender)
	if !valid {
		return refuse(EDUMalformed)
	}
	if server != origin || f.IsLocal(server) { // no other server speaks for this one's users
		return refuse(EDUSpoofed)
	}
	eventType, _ := wire.String(fields["type"])
	if eventType == "" || len(eventType) > maxTypeBytes || strings.ContainsRune(eventType, 0) {
		return refuse(EDUMalformed)
	}
	messageID, outcome := parseMessageID(fields)
	if outcome != "" {
		return refuse(outcome)
	}
	targets, outcome := f.parseMessages(fields["messages"])
	if outcome != "" {
		return refuse(outcome)
	}
	return writer.Message{
		Sender:  sender,
		Type:    eventType,
		Targets: targets,
		// It can't be the key of a client's transaction, since a server's name is no user ID.
		Transaction: types.TransactionKey{
			Device:        types.Device{UserID: origin},
			EventType:     spec.MDirectToDevice,
			TransactionID: messageID,
		},
		Remember: f.Remember,
	}, ""
}

func parseMessageID(fields map[string]json.RawMessage) (messageID, outcome string) {
	raw, there := fields["message_id"]
	if !there {
		return "", EDUWithoutMessageID
	}
	messageID, ok := wire.String(raw)
	switch {
	case !ok || utf8.RuneCountInString(messageID) > maxMessageIDRunes || strings.ContainsRune(messageID, 0):
		return "", EDUMalformed
	case messageID == "":
		return "", EDUWithoutMessageID
	}
	return messageID, ""
}

func (f *Federation) parseMessages(raw json.RawMessage) (targets []devices.Target, outcome string) {
	users, ok := wire.Object(raw)
	if !ok {
		return nil, EDUMalformed
	}
	named := 0
	for userID, part := range users {
		contents, ok := wire.Object(part)
		if !ok {
			return nil, EDUMalformed
		}
		if named += len(contents); named > maxRecipients {
			return nil, EDUTooManyRecipients
		}
		server, valid := wire.ServerOf(userID)
		ours := valid && f.IsLocal(server)
		for deviceID, content := range contents {
			if !wire.IsObject(content) || types.Depth(content) > types.MaxContentDepth {
				return nil, EDUMalformed
			}
			if ours {
				targets = append(targets, devices.Target{Device: types.Device{UserID: userID, DeviceID: deviceID}, Content: content})
			}
		}
	}
	return targets, ""
}
