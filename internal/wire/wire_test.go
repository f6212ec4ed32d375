package wire

import (
	"strings"
	"testing"
)

func TestObject(t *testing.T) {
	for _, raw := range []string{``, ` `, `null`, `[]`, `"{}"`, `1`, `{`, `{} {}`, `{"a":01}`, "\v{}"} {
		if fields, ok := Object([]byte(raw)); ok {
			t.Errorf("%q is taken for the object %v", raw, fields)
		}
	}
	fields, ok := Object([]byte(" \t\r\n{\"a\" : 1,\"A\":2,\"b\":{ },\"b\":[ ]}\n"))
	if !ok || len(fields) != 3 || string(fields["a"]) != "1" || string(fields["A"]) != "2" || string(fields["b"]) != "[ ]" {
		t.Errorf("decoded was %s, %v", fields, ok)
	}
}

func TestString(t *testing.T) {
	for _, raw := range []string{``, `null`, `1`, `{}`, `["a"]`, `"a`, `"a" "b"`, `'a'`, `true`} {
		if text, ok := String([]byte(raw)); ok {
			t.Errorf("%q is taken for the string %q", raw, text)
		}
	}
	for raw, want := range map[string]string{`""`: "", "\t\"a\"\n": "a", `"\u0000\ud83d\ude00"`: "\x00\U0001F600", `"null"`: "null"} {
		if text, ok := String([]byte(raw)); !ok || text != want {
			t.Errorf("%s became %q, %v", raw, text, ok)
		}
	}
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
