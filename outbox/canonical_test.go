package outbox_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// What stands on the right is what Python's json.dumps makes of what json.loads made of the left, with
// sorted keys and whole numbers as integers.
func TestCanonical(t *testing.T) {
	deep := strings.Repeat(`{"a":[`, 50) + "1e0" + strings.Repeat(`]}`, 50)
	for in, want := range map[string]string{
		` { "b" : 1 , "a" : [ ] } `:                 `{"a":[],"b":1}`,
		`{"a":1,"a":2}`:                             `{"a":2}`,
		`{"b":{"z":1,"y":2},"a":{"b":{}}}`:          `{"a":{"b":{}},"b":{"y":2,"z":1}}`,
		`{"ä":1,"z":2,"Z":3,"\ud83d\ude00":4}`:      `{"Z":3,"z":2,"ä":1,"😀":4}`,
		`{"\ufb01":1,"\ud83d\ude00":2}`:             "{\"\ufb01\":1,\"😀\":2}", // by code point, not by UTF-16
		`"\u003c\u003e&<>\u0026"`:                   `"<>&<>&"`,
		"\"\\u2028\u2029\"":                         "\"\u2028\u2029\"",
		`"\u0000\u0001\u001f\u007f"`:                "\"\\u0000\\u0001\\u001f\u007f\"",
		`"\b\f\n\r\t\u0008\u000C"`:                  `"\b\f\n\r\t\b\f"`,
		`"\/\\\"\u005c\u0022"`:                      `"/\\\"\\\""`,
		`"\ud83d\ude00"`:                            `"😀"`,
		`"\ud800"`:                                  "\"\ufffd\"", // lone surrogates have no UTF-8
		`"\udc00\ud800x"`:                           "\"\ufffd\ufffdx\"",
		`{"\ud800":1,"\ud801":2}`:                   "{\"\ufffd\":2}",
		`"-0 -0.5 1e-5"`:                            `"-0 -0.5 1e-5"`,
		`[0,-0,0.0,-0.0,0e5,-0e0]`:                  `[0,0,0,0,0,0]`,
		`[1e3,1E3,1e+3,1000.0,-1e3]`:                `[1000,1000,1000,1000,-1000]`,
		`[1.5,-1.5,15e-1,0.1,0.5]`:                  `[1.5,-1.5,1.5,0.1,0.5]`,
		`[0.0001,1e-10,12345.678e-20]`:              `[0.0001,1e-10,1.2345678e-16]`,
		`[9007199254740991,9007199254740991.0]`:     `[9007199254740991,9007199254740991]`,
		`[9007199254740993,9007199254740993.0]`:     `[9007199254740993,9007199254740992.0]`,
		`[1e15,1e16,1e22,1.5e300,-1e20]`:            `[1000000000000000,1e+16,1e+22,1.5e+300,-1e+20]`,
		`[123456789012345678901234567890]`:          `[123456789012345678901234567890]`,
		`[5e-324,1e-400,1.7976931348623157e308]`:    `[5e-324,0,1.7976931348623157e+308]`,
		`[null,true,false,{},[],""]`:                `[null,true,false,{},[],""]`,
		deep:                                        strings.Replace(deep, "1e0", "1", 1),
		`{"a":[{"b":[{"c":1.0},{"c":[2.0,"x"]}]}]}`: `{"a":[{"b":[{"c":1},{"c":[2,"x"]}]}]}`,
	} {
		got, err := outbox.Canonical([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s is written %s (%v), want %s", in, got, err, want)
			continue
		}
		wantFixpoint(t, got)
	}
}

func wantFixpoint(t reporter, content []byte) {
	theirs, err := gomatrixserverlib.CanonicalJSON(content)
	if err != nil || string(theirs) != string(content) {
		t.Errorf("the host makes %s of %s (%v)", theirs, content, err)
	}
}

// gomatrixserverlib takes the sign from whatever begins with -0, an exponent too.
func TestCanonicalRefusesNumbersThatWouldNotArrive(t *testing.T) {
	for _, number := range []string{"1e400", "-1e400", "-0.5", "-0.0001", "1e-5", "-1e-5", "1.5e-9", "1e-09"} {
		for _, in := range []string{number, "[" + number + "]", `{"a":[{"b":` + number + `}]}`} {
			if got, err := outbox.Canonical([]byte(in)); !errors.Is(err, outbox.ErrNumber) {
				t.Errorf("%s is written %s (%v), want ErrNumber", in, got, err)
			}
		}
	}
}

// Only what is a key is left unescaped by some.
func TestCanonicalRefusesKeysWithEscapes(t *testing.T) {
	for _, text := range []string{`\"`, `\\`, `\u0000`, `\u001f`, `\n`, `a\u0022b`, `":{},"x`} {
		text = strings.ReplaceAll(text, `":{},"x`, `\":{},\"x`)
		for _, in := range []string{`{"` + text + `":1}`, `[{"a":{"` + text + `":{}}}]`} {
			if got, err := outbox.Canonical([]byte(in)); !errors.Is(err, outbox.ErrKey) {
				t.Errorf("%s is written %s (%v), want ErrKey", in, got, err)
			}
		}
		if _, err := outbox.Canonical([]byte(`{"a":"` + text + `"}`)); err != nil {
			t.Errorf("as a value, %s: %v", text, err)
		}
	}
}

func TestCanonicalRefusesWhatIsNoJSON(t *testing.T) {
	for _, in := range []string{"", "{", `{"a":}`, "nul", "+1", ".5", "1."} {
		if got, err := outbox.Canonical([]byte(in)); err == nil {
			t.Errorf("%q is written %q", in, got)
		}
	}
}
