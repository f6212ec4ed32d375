package trace

import (
	"encoding/binary"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// The texts of a record, in the order in which they are encoded.
const (
	textStep = iota
	textReason
	textUser
	textDevice
	textSender
	textType
	textMessageID
	textEDUID
	textTransaction
	textOrigin
	textDestination
	texts
)

func (r *Record) texts() [texts]string {
	return [texts]string{
		string(r.Step), string(r.Reason), r.Recipient.UserID, r.Recipient.DeviceID, r.Sender, r.Type,
		r.MessageID, r.EDUID, r.TransactionID, r.Origin, r.Destination,
	}
}

// maxSize is at least as many bytes as appendTo appends.
func (r *Record) maxSize() int {
	size := 2 + 8 + 2*binary.MaxVarintLen64 + texts
	for _, text := range r.texts() {
		size += min(len(text), maxText)
	}
	return size
}

// appendTo appends the record's length, what has numbers, and the texts, each after its length.
func (r *Record) appendTo(data []byte, at time.Time) []byte {
	start := len(data)
	data = append(data, 0, 0)
	data = binary.LittleEndian.AppendUint64(data, uint64(at.UnixNano()))
	data = binary.AppendVarint(data, int64(r.Position))
	data = binary.AppendVarint(data, int64(r.Count))
	for _, text := range r.texts() {
		text = clip(text)
		data = append(data, byte(len(text)))
		data = append(data, text...)
	}
	binary.LittleEndian.PutUint16(data[start:], uint16(len(data)-start))
	return data
}

// encoded is a record as it is kept.
type encoded struct {
	at       int64 // nanoseconds since 1970
	position types.Position
	count    int
	texts    [texts][]byte
}

// read reads the first record and returns what follows it.
func (e *encoded) read(data []byte) (rest []byte) {
	size := binary.LittleEndian.Uint16(data)
	data, rest = data[2:size], data[size:]
	e.at, data = int64(binary.LittleEndian.Uint64(data)), data[8:]
	position, n := binary.Varint(data)
	data = data[n:]
	count, n := binary.Varint(data)
	data = data[n:]
	e.position, e.count = types.Position(position), int(count)
	for i := range e.texts {
		end := 1 + int(data[0])
		e.texts[i], data = data[1:end], data[end:]
	}
	return rest
}

func (e *encoded) step() Step { return Step(e.texts[textStep]) }

func (e *encoded) recipient() types.Device {
	return types.Device{UserID: string(e.texts[textUser]), DeviceID: string(e.texts[textDevice])}
}

func (e *encoded) record() Record {
	return Record{
		At:            time.Unix(0, e.at).UTC(),
		Step:          e.step(),
		Reason:        Reason(e.texts[textReason]),
		Recipient:     e.recipient(),
		Sender:        string(e.texts[textSender]),
		Type:          string(e.texts[textType]),
		MessageID:     string(e.texts[textMessageID]),
		EDUID:         string(e.texts[textEDUID]),
		TransactionID: string(e.texts[textTransaction]),
		Origin:        string(e.texts[textOrigin]),
		Destination:   string(e.texts[textDestination]),
		Position:      e.position,
		Count:         e.count,
	}
}
