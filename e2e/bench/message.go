package main

import (
	"bytes"
	"math/rand/v2"
	"strconv"
	"strings"
)

const (
	// contentBytes is the size of each content, about that of a room key in an encrypted message.
	contentBytes = 800
	// markKey is the key of a content under which it says which message it is.
	markKey = "m"
)

// mark names one message among all that are ever sent: by the load, its sender and the number that it has there.
type mark struct {
	load        string
	sender, seq int
}

func newLoadName() string { return strconv.FormatUint(rand.Uint64(), 36) }

func (m mark) String() string {
	return m.load + "." + strconv.Itoa(m.sender) + "." + strconv.Itoa(m.seq)
}

// parseMark returns false for what is no mark.
func parseMark(text string) (m mark, ok bool) {
	load, rest, _ := strings.Cut(text, ".")
	sender, seq, _ := strings.Cut(rest, ".")
	var errs [2]error
	m.load = load
	m.sender, errs[0] = strconv.Atoi(sender)
	m.seq, errs[1] = strconv.Atoi(seq)
	return m, errs[0] == nil && errs[1] == nil
}

// everyDevice names all devices of a user in a request.
const everyDevice = "*"

var padding = strings.Repeat("x", contentBytes)

// request writes the body of a request that sends the message to the devices, the devices of a user beside each other.
func request(into *bytes.Buffer, m mark, to []*device) []byte {
	content := `{"` + markKey + `":"` + m.String() + `","pad":"`
	content += padding[:max(0, contentBytes-len(content)-2)] + `"}`
	into.Reset()
	into.WriteString(`{"messages":{`)
	for i, d := range to {
		switch {
		case i > 0 && to[i-1].user == d.user:
			into.WriteString(`,"`)
		case i > 0:
			into.WriteString(`},"` + d.user + `":{"`)
		default:
			into.WriteString(`"` + d.user + `":{"`)
		}
		into.WriteString(d.id)
		into.WriteString(`":`)
		into.WriteString(content)
	}
	into.WriteString(`}}}`)
	return into.Bytes()
}
