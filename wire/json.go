// Package wire reads what reaches the server as JSON, from clients and from other servers.
package wire

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// Valid is JSON in UTF-8, or empty for none at all. It is made by Parse and is not checked again.
type Valid string

// Parse returns false for what is no JSON in UTF-8.
func Parse(raw []byte) (Valid, bool) {
	if !isJSON(raw) || !utf8.Valid(raw) {
		return "", false
	}
	return Valid(raw), true
}

// ParseText is Parse of a string, which it does not copy.
func ParseText(text string) (Valid, bool) {
	if !isJSONText(text) || !utf8.ValidString(text) {
		return "", false
	}
	return Valid(text), true
}

// fewLevels is up to how many levels the faster check of JSON may take. It recurses for each, and the stack of a goroutine
// is bounded.
const fewLevels = 10_000

func isJSON(raw []byte) bool {
	if bytes.Count(raw, []byte("{"))+bytes.Count(raw, []byte("[")) > fewLevels {
		return json.Valid(raw)
	}
	return gjson.ValidBytes(raw)
}

func isJSONText(text string) bool {
	if strings.Count(text, "{")+strings.Count(text, "[") > fewLevels {
		return json.Valid([]byte(text))
	}
	return gjson.Valid(text)
}

// Object returns the members of a JSON object by their keys, which are matched exactly, unlike those of a struct: of several with
// one key the last. It returns false for anything else.
func (v Valid) Object() (map[string]Valid, bool) {
	members, isObject, _ := v.ObjectOf(math.MaxInt)
	return members, isObject
}

// ObjectOf is Object for what others may make as large as they like: a member takes twenty times the memory that it took as text. It
// returns fits false, and not all of the members, if there are more than most, those with the same key included.
func (v Valid) ObjectOf(most int) (members map[string]Valid, isObject, fits bool) {
	if !gjson.Parse(string(v)).IsObject() {
		return nil, false, false
	}
	members, fits = make(map[string]Valid), true
	seen := 0
	v.Each(func(key string, member Valid) bool {
		if seen++; seen > most {
			fits = false
			return false
		}
		members[key] = member
		return true
	})
	return members, true, fits
}

// Each calls f with each member of an object, or each item of an array, whose key is empty, until f returns false.
func (v Valid) Each(f func(key string, value Valid) bool) {
	if container := gjson.Parse(string(v)); container.IsObject() || container.IsArray() {
		container.ForEach(func(key, value gjson.Result) bool { return f(text(key), Valid(value.Raw)) })
	}
}

// String returns what a JSON string says. It returns false for anything else, such as null.
func (v Valid) String() (string, bool) {
	value := gjson.Parse(string(v))
	return text(value), value.Type == gjson.String
}

func text(s gjson.Result) string {
	if !strings.Contains(s.Raw, `\`) {
		return s.Str
	}
	var decoded string
	_ = json.Unmarshal([]byte(s.Raw), &decoded) // takes half a surrogate pair for what the host takes it for
	return decoded
}
