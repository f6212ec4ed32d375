package host

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"
)

// exactVerifier verifies signatures over canonical JSON as the specification has it (appendices, "Canonical JSON"). Newer versions of
// gomatrixserverlib leave out the escapes in keys: what other servers signed with such a key they refuse, and with it a
// transaction that its server sends again for ever, and they take one key for two members of an object.
type exactVerifier struct{ gomatrixserverlib.JSONVerifier }

func (v exactVerifier) VerifyJSONs(ctx context.Context, requests []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	requests = slices.Clone(requests)
	for i := range requests {
		requests[i].Message = forVerifying(requests[i].Message)
	}
	return v.JSONVerifier.VerifyJSONs(ctx, requests)
}

// forVerifying returns a message of which the library makes the canonical JSON of the one given, which is valid: where it leaves out escapes, everything
// up to the last value is one key without them. A message that it writes as it is to be is returned unchanged.
func forVerifying(message []byte) []byte {
	if bytes.IndexByte(message, '\\') < 0 {
		return message
	}
	compact := gomatrixserverlib.CompactJSON(message, make([]byte, 0, len(message)))
	if !hasEscapedKey(compact) {
		return message
	}
	var signatures string
	signed := members(gjson.ParseBytes(compact), func(m member) bool {
		if m.key.Str == "signatures" {
			signatures = m.value.Raw
		}
		return m.key.Str != "signatures" && m.key.Str != "unsigned" // which no signature covers
	})
	if len(signed) == 0 || signatures == "" {
		return message
	}
	want := appendObject(nil, signed)
	last := appendCanonical(nil, signed[len(signed)-1].value)
	key, err := json.Marshal(string(want[len(`{"`) : len(want)-len(`":`)-len(last)-len(`}`)]))
	if err != nil {
		return message
	}
	whole := slices.Concat([]byte("{"), key, []byte(":"), last)
	if got, err := gomatrixserverlib.CanonicalJSON(append(slices.Clone(whole), '}')); err != nil || !bytes.Equal(got, want) {
		return message
	}
	return slices.Concat(whole, []byte(`,"signatures":`), []byte(signatures), []byte("}"))
}

// hasEscapedKey takes JSON without space between its tokens.
func hasEscapedKey(compact []byte) bool {
	for i := 0; i < len(compact); i++ {
		if compact[i] != '"' {
			continue
		}
		escaped := false
		for i++; i < len(compact) && compact[i] != '"'; i++ {
			if compact[i] == '\\' {
				escaped = true
				i++
			}
		}
		if escaped && i+1 < len(compact) && compact[i+1] == ':' {
			return true
		}
	}
	return false
}

type member struct{ key, value gjson.Result }

// members returns those members of an object that are wanted, in canonical order.
func members(object gjson.Result, wanted func(member) bool) (all []member) {
	object.ForEach(func(key, value gjson.Result) bool {
		if m := (member{key, value}); wanted(m) {
			all = append(all, m)
		}
		return true
	})
	slices.SortStableFunc(all, func(a, b member) int { return cmp.Compare(a.key.String(), b.key.String()) })
	return all
}

func appendCanonical(out []byte, value gjson.Result) []byte {
	switch {
	case value.IsObject():
		return appendObject(out, members(value, func(member) bool { return true }))
	case value.IsArray():
		out = append(out, '[')
		for i, item := range value.Array() {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendCanonical(out, item)
		}
		return append(out, ']')
	default:
		return append(out, value.Raw...)
	}
}

func appendObject(out []byte, all []member) []byte {
	out = append(out, '{')
	for i, m := range all {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(out, m.key.Raw...), ':')
		out = appendCanonical(out, m.value)
	}
	return append(out, '}')
}
