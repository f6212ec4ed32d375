package sqlstore

import (
	"encoding/json"
	"strings"
)

const (
	// MaxMessageIDBytes is how much of a message ID is shown.
	MaxMessageIDBytes = 255
	// MaxMessageIDLiteral is how much of its JSON has to be read for that: a quote, and each byte escaped, the last one perhaps cut off.
	MaxMessageIDLiteral = 1 + 6*(MaxMessageIDBytes+1)
)

// messageID decodes a JSON string that may have been cut off at MaxMessageIDLiteral characters. Anything else gives
// the empty string.
func messageID(literal string) string {
	body, ok := strings.CutPrefix(literal, `"`)
	if !ok {
		return ""
	}
	body = strings.TrimSuffix(body, `"`)
	// It may be cut off within the last escape sequence.
	for end := len(body); end >= max(0, len(body)-len(`\u0000`)); end-- {
		var id string
		if json.Unmarshal([]byte(`"`+body[:end]+`"`), &id) == nil {
			return strings.ToValidUTF8(id[:min(len(id), MaxMessageIDBytes)], "")
		}
	}
	return ""
}
