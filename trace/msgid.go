package trace

import (
	"bytes"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// maxText bounds each text of a record, in bytes. Only device IDs, and what a client or another server makes up, can be
// longer.
const maxText = 255

// MessageID returns the org.matrix.msgid of a content, at most 255 bytes of it, or the empty string if it has none. The content
// must be valid JSON. Nearly all contents without one cost a search for its name.
func MessageID(content []byte) string {
	if !bytes.Contains(content, []byte(`"org.matrix.msgid"`)) {
		return ""
	}
	if id := gjson.GetBytes(content, `org\.matrix\.msgid`); id.Type == gjson.String {
		return clip(id.Str)
	}
	return ""
}

// clip cuts a text to maxText bytes, and not within a character.
func clip(text string) string {
	if len(text) <= maxText {
		return text
	}
	end := maxText
	for end > maxText-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
