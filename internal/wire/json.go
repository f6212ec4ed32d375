// Package wire reads what reaches the server as JSON, from clients and from other servers.
package wire

import (
	"bytes"
	"encoding/json"
)

// Object decodes a JSON object, whose keys are matched exactly, unlike those of a struct. It returns false
// for anything else.
func Object(raw []byte) (map[string]json.RawMessage, bool) {
	if !IsObject(raw) {
		return nil, false
	}
	var fields map[string]json.RawMessage
	return fields, json.Unmarshal(raw, &fields) == nil
}

// IsObject reports whether valid JSON is an object.
func IsObject(raw []byte) bool { return startsWith(raw, '{') }

// String decodes a JSON string. It returns false for anything else, such as null or nothing at all.
func String(raw []byte) (string, bool) {
	if !startsWith(raw, '"') {
		return "", false
	}
	var text string
	return text, json.Unmarshal(raw, &text) == nil
}

func startsWith(raw []byte, c byte) bool {
	trimmed := bytes.TrimLeft(raw, " \t\r\n")
	return len(trimmed) > 0 && trimmed[0] == c
}
