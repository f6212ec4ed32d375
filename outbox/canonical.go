package outbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// ErrNumber is returned for a content with a number that would not arrive: beyond the range of a
// double, or one of the fractions that no two implementations of canonical JSON, which has integers
// alone, write alike.
var ErrNumber = errors.New("canonical JSON has no such number; send an integer or a string")

// ErrKey is returned for what is the key of an object and has a character in it that JSON escapes. Newer versions of gomatrixserverlib leave the
// escape out where they sign and verify, and send what they signed: a transaction with such a key would be refused, or say
// something else than its sender did.
var ErrKey = errors.New("not every server takes a key or an ID with a quotation mark, a backslash or a control character; send others")

// errUnsigned says that the host would send something else than was stored.
var errUnsigned = errors.New("the library that signs for this server changes one of the keys")

// isPlain reports whether a key is written without escapes.
func isPlain(key string) bool {
	return !strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' })
}

// canSign returns errUnsigned for an EDU that was stored before Pack refused such keys, or by a server with another library.
func canSign(e storage.EDU) error {
	if bytes.IndexByte(e.Content, '\\') < 0 {
		return nil
	}
	if signed, err := gomatrixserverlib.CanonicalJSON(e.Content); err != nil || !bytes.Equal(signed, e.Content) {
		return errUnsigned
	}
	return nil
}

// canonical returns JSON as every implementation of canonical JSON writes it (appendices, "Canonical
// JSON"). A transaction is signed over it: one number or key that the receiver would write otherwise has it
// refuse the whole transaction for a bad signature, with everybody's messages in it.
func canonical(raw []byte) ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	value, err := asCanonical(value)
	if err != nil {
		return nil, err
	}
	return encode(value)
}

func encode(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	// Go sorts the keys as canonical JSON does, but escapes U+2028 and U+2029.
	return gomatrixserverlib.CompactJSON(buffer.Bytes(), make([]byte, 0, buffer.Len())), nil
}

func asCanonical(value any) (any, error) {
	var err error
	switch v := value.(type) {
	case map[string]any:
		for key := range v {
			if !isPlain(key) {
				return nil, ErrKey
			}
			if v[key], err = asCanonical(v[key]); err != nil {
				return nil, err
			}
		}
	case []any:
		for i := range v {
			if v[i], err = asCanonical(v[i]); err != nil {
				return nil, err
			}
		}
	case json.Number:
		return canonicalNumber(v)
	}
	return value, nil
}

// canonicalNumber writes whole numbers as integers, and others, which canonical JSON does not have, as
// Python does, since Synapse writes them so when it verifies a signature. Dendrite leaves them as they are.
func canonicalNumber(number json.Number) (json.Number, error) {
	text := number.String()
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) {
		return "", ErrNumber
	}
	if !strings.ContainsAny(text, ".eE") {
		if text == "-0" {
			return "0", nil
		}
		return number, nil
	}
	const exact = 1 << 53
	if f == math.Trunc(f) && math.Abs(f) < exact {
		return json.Number(strconv.FormatInt(int64(f), 10)), nil
	}
	// gomatrixserverlib takes "-0" for a zero wherever it stands, and turns -0.5 into 0.5 when it signs.
	if text = pythonFloat(f); strings.Contains(text, "-0") {
		return "", ErrNumber
	}
	return json.Number(text), nil
}

// pythonFloat is Python's repr of a float: the shortest digits, with an exponent from 1e16 on and below
// 1e-4.
func pythonFloat(f float64) string {
	if magnitude := math.Abs(f); magnitude >= 1e16 || magnitude < 1e-4 {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	text := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text
}
