package wire

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"
)

func parse(raw string) Valid {
	value, _ := Parse([]byte(raw))
	return value
}

func TestParse(t *testing.T) {
	for _, raw := range []string{``, ` `, `{`, `{} {}`, `{"a":01}`, "\v{}", "\"\xff\"", `"\x"`, "\"\n\"", `nul`, strings.Repeat("[", 1<<20), nested(10_001)} {
		if value, ok := Parse([]byte(raw)); ok || value != "" {
			t.Errorf("%.20q is taken for JSON: %.20q", raw, value)
		}
	}
}

func nested(levels int) string { return strings.Repeat("[", levels) + strings.Repeat("]", levels) }

// As deep as the host's decoder goes, and with as many objects as a request has room for.
func TestParseWithMany(t *testing.T) {
	for _, raw := range []string{nested(10_000), "[" + strings.Repeat("{},", 2*fewLevels) + "{}]"} {
		if value, ok := Parse([]byte(raw)); !ok || string(value) != raw {
			t.Errorf("%.20q is not taken for JSON", raw)
		}
	}
}

func TestObject(t *testing.T) {
	for _, raw := range []string{``, `null`, `[]`, `"{}"`, `1`, `[{}]`, `true`} {
		if members, ok := parse(raw).Object(); ok {
			t.Errorf("%q is taken for the object %v", raw, members)
		}
	}
	members, ok := parse(" \t\r\n{\"a\" : 1,\"A\":2,\"b\":{ },\"b\" : [ ] , \"\":\"\\\"\"}\n").Object()
	want := map[string]Valid{"a": "1", "A": "2", "b": "[ ]", "": `"\""`}
	if !ok || !maps.Equal(members, want) {
		t.Errorf("decoded was %q, %v, want %q", members, ok, want)
	}
}

func TestObjectOf(t *testing.T) {
	for raw, want := range map[string]bool{`{}`: true, `{"a":1,"b":{"c":1,"d":2}}`: true, `{"a":1,"b":2,"c":3}`: false, `{"a":1,"a":2,"a":3}`: false} {
		members, isObject, fits := parse(raw).ObjectOf(2)
		if !isObject || fits != want || len(members) > 2 {
			t.Errorf("%s: %v, %v, %d members", raw, isObject, fits, len(members))
		}
	}
	if _, isObject, _ := parse(`[]`).ObjectOf(2); isObject {
		t.Error("an array is taken for an object")
	}
}

func TestParseText(t *testing.T) {
	for _, raw := range []string{``, `{}`, `{"a":"é"}`, "\"\xff\"", `{`, "[" + strings.Repeat("{},", 2*fewLevels) + "{}]", nested(10_001), nested(10_000)} {
		value, ok := ParseText(raw)
		if want, wantOK := Parse([]byte(raw)); value != want || ok != wantOK {
			t.Errorf("%.20q: %.20q, %v, want %v", raw, value, ok, wantOK)
		}
	}
}

func TestString(t *testing.T) {
	for _, raw := range []string{``, `null`, `1`, `{}`, `["a"]`, `"a`, `"a" "b"`, `'a'`, `true`} {
		if text, ok := parse(raw).String(); ok {
			t.Errorf("%q is taken for the string %q", raw, text)
		}
	}
	for raw, want := range map[string]string{`""`: "", "\t\"a\"\n": "a", `"\u0000\ud83d\ude00"`: "\x00\U0001F600", `"null"`: "null"} {
		if text, ok := parse(raw).String(); !ok || text != want {
			t.Errorf("%s became %q, %v", raw, text, ok)
		}
	}
}

// FuzzObject has each object taken for what the host's decoder takes it for.
func FuzzObject(f *testing.F) {
	for _, raw := range []string{`{"a":{"b":[1,"x"]},"\ud800":1,"\udc00\ud800":"\ud83d","\/":null,"A":-0.1e5,"a":false}`, ` { } `, `"\u00e9\ufffd"`, `{"":{"":{}}}`} {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		value, valid := Parse(raw)
		if valid != (json.Valid(raw) && utf8.Valid(raw)) {
			t.Fatalf("valid: %v", valid)
		}
		var want map[string]json.RawMessage
		isObject := valid && json.Unmarshal(raw, &want) == nil && want != nil
		members, ok := value.Object()
		if ok != isObject || len(members) != len(want) {
			t.Fatalf("decoded was %q, %v, want %q, %v", members, ok, want, isObject)
		}
		for key, member := range want {
			if got, there := members[key]; !there || string(got) != string(member) {
				t.Fatalf("%q: decoded was %q, %v, want %q", key, got, there, member)
			}
		}
		var wantText any
		isString := valid && json.Unmarshal(raw, &wantText) == nil
		if isString {
			_, isString = wantText.(string)
		}
		text, ok := value.String()
		if ok != isString || ok && text != wantText {
			t.Fatalf("decoded was %q, %v, want %q, %v", text, ok, wantText, isString)
		}
	})
}

func TestServerOf(t *testing.T) {
	for userID, want := range map[string]string{
		"@a:b":                                "b",
		"@Historic User!:example.org:8448":    "example.org:8448",
		"@a:[2001:db8::1]:8448":               "[2001:db8::1]:8448",
		"@" + strings.Repeat("a", 252) + ":b": "b",
	} {
		if server, ok := ServerOf(userID); !ok || server != want {
			t.Errorf("%q: %q, %v", userID, server, ok)
		}
	}
	for _, userID := range []string{
		"", "@", "a:b", "@a", "@:b", "@a:", "@a:b c", "@a\x00:b", "@a:b\x00", "!a:b", " @a:b", "@" + strings.Repeat("a", 253) + ":b",
	} {
		if server, ok := ServerOf(userID); ok {
			t.Errorf("%q is taken for a user of %q", userID, server)
		}
	}
}
