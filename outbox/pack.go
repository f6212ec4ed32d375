package outbox

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// maxEDUBytes is how large an EDU with several messages may be, as canonical JSON: what the specification
// allows an event, and Synapse an EDU.
const maxEDUBytes = 64 << 10

// Message is one message for devices of other servers.
type Message struct {
	Origin string // the sender's server name
	Sender string
	Type   string
	// Targets are full user IDs with device IDs or devices.AllDevices, which the receiver expands.
	Targets []devices.Target
	// Packed is told of each target and the EDU that carries it, of which MessageID and Destination are set; nil means that
	// nobody is.
	Packed func(target devices.Target, edu *storage.EDU)
}

// Pack returns the EDUs that carry a message: for each destination as few as fit maxEDUBytes each, though a
// single content may exceed it. Their positions are not set. It returns ErrNumber for a content with a
// number that can't be sent, and ErrKey for a key or an ID.
func Pack(m Message) ([]storage.EDU, error) {
	type packing struct {
		destination string
		devices.Target
	}
	targets := make([]packing, len(m.Targets))
	for i, target := range m.Targets {
		content, err := canonical(target.Content)
		if !isPlain(target.UserID) || !isPlain(target.DeviceID) {
			err = ErrKey
		}
		if err != nil {
			return nil, fmt.Errorf("%w: messages[%q][%q]", err, target.UserID, target.DeviceID)
		}
		targets[i] = packing{ServerOf(target.UserID), devices.Target{Device: target.Device, Content: content, MessageID: target.MessageID}}
	}
	slices.SortFunc(targets, func(a, b packing) int {
		return cmp.Or(
			cmp.Compare(a.destination, b.destination),
			cmp.Compare(a.UserID, b.UserID),
			cmp.Compare(a.DeviceID, b.DeviceID),
		)
	})
	var edus []storage.EDU
	var filling *builder
	for _, target := range targets {
		if filling == nil || filling.destination != target.destination || !filling.hasRoom(target.Target) {
			if filling != nil {
				edus = append(edus, filling.edu())
			}
			filling = newBuilder(m, target.destination)
		}
		filling.add(target.Target)
		if m.Packed != nil {
			m.Packed(target.Target, &filling.EDU)
		}
	}
	if filling != nil {
		edus = append(edus, filling.edu())
	}
	return edus, nil
}

// ServerOf returns the server name of a user ID.
func ServerOf(userID string) string {
	_, server, _ := strings.Cut(userID, ":")
	return server
}

// newMessageID returns a message_id: unique, and of the 32 characters that the specification allows.
func newMessageID() string {
	return strings.ReplaceAll(uuid.NewString(), "-", "")
}

// builder writes the content of an EDU with its keys in canonical order.
type builder struct {
	storage.EDU
	destination string
	content     bytes.Buffer
	end         []byte // what follows the messages
	envelope    int    // bytes around the content
	user        string // whose devices are being written
	forAll      bool   // one for all devices of user was written
}

func newBuilder(m Message, destination string) *builder {
	b := &builder{
		EDU:         storage.EDU{Destination: destination, Origin: m.Origin, MessageID: newMessageID()},
		destination: destination,
		end:         []byte(`},"sender":` + quote(m.Sender) + `,"type":` + quote(m.Type) + `}`),
		envelope:    len(`{"content":,"edu_type":,"origin":}`) + len(quote(spec.MDirectToDevice)) + len(quote(m.Origin)),
	}
	b.content.WriteString(`{"message_id":` + quote(b.MessageID) + `,"messages":{`)
	return b
}

func (b *builder) hasRoom(target devices.Target) bool {
	if b.user == target.UserID && (b.forAll || target.DeviceID == devices.AllDevices) {
		return false // Synapse expands "*" only where it stands alone
	}
	added := len(quote(target.DeviceID)) + len(target.Content) + len(`,:}`)
	if target.UserID != b.user {
		added += len(quote(target.UserID)) + len(`}:{`)
	}
	return b.content.Len()+added+len(b.end)+b.envelope <= maxEDUBytes
}

func (b *builder) add(target devices.Target) {
	switch b.user {
	case target.UserID:
		b.content.WriteByte(',')
	case "":
		b.content.WriteString(quote(target.UserID) + `:{`)
	default:
		b.content.WriteString(`},` + quote(target.UserID) + `:{`)
	}
	b.user, b.forAll = target.UserID, target.DeviceID == devices.AllDevices
	b.content.WriteString(quote(target.DeviceID) + `:`)
	b.content.Write(target.Content)
}

func (b *builder) edu() storage.EDU {
	if b.user != "" {
		b.content.WriteByte('}')
	}
	b.content.Write(b.end)
	b.Content = b.content.Bytes()
	return b.EDU
}

func quote(s string) string {
	text, _ := encode(s) // every string has a JSON form
	return string(text)
}

// asEDU is the form in which an EDU goes into a transaction.
func asEDU(e storage.EDU) gomatrixserverlib.EDU {
	return gomatrixserverlib.EDU{Type: spec.MDirectToDevice, Origin: e.Origin, Content: spec.RawJSON(e.Content)}
}

// nothing returns an EDU that carries no message: a question whether a destination takes any.
func nothing(origin string) storage.EDU {
	return newBuilder(Message{Origin: origin, Sender: "@nobody:" + origin, Type: "org.matrix.dendrite.todevice.nothing"}, "").edu()
}
