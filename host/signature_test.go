package host

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// signed is what a server sends that signs as the specification has it, which one library may not. The content must have strings alone that Go
// writes as canonical JSON does.
func (s *sendServer) signed(t *testing.T, txnID, content string) *http.Request {
	t.Helper()
	const origin, uri = "there", "/_matrix/federation/v1/send/"
	var canonical bytes.Buffer
	encoder := json.NewEncoder(&canonical)
	encoder.SetEscapeHTML(false)
	var value any
	if err := json.Unmarshal([]byte(content), &value); err != nil {
		t.Fatal(err)
	}
	err := encoder.Encode(map[string]any{"method": http.MethodPut, "uri": uri + txnID, "origin": origin, "destination": "test", "content": value})
	if err != nil {
		t.Fatal(err)
	}
	signature := ed25519.Sign(s.keys[spec.ServerName(origin)], bytes.TrimSpace(canonical.Bytes()))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "matrix://test"+uri+txnID, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", fmt.Sprintf(`X-Matrix origin=%q,destination="test",key=%q,sig=%q`, origin, keyID, base64.RawStdEncoding.EncodeToString(signature)))
	return req
}

func TestKeysWithEscapesAreVerified(t *testing.T) {
	s := startSendServer(t)
	for i, content := range []string{
		`{"n":1}`,
		`{"text":"a\nb\"\\"}`,
		`{"\u0000":1}`,
		`{"a\"b":1,"A":{"\n":[{"\\":2,"Z":3}]}}`,
		`{"x\":1,\"y":2}`,
		`{"\"":1,"!":2,"#":3,"A":4,"\\":5,"]":6,"é":7,"😀":8,"<&>":9}`,
	} {
		req := s.signed(t, fmt.Sprint(i), transaction(toBob(fmt.Sprint(i), content)))
		if answer := s.serve(req); answer.Code != http.StatusOK {
			t.Errorf("%s: %d %s", content, answer.Code, answer.Body)
		}
		if stored := s.stored(t); !strings.Contains(stored, content) {
			t.Errorf("of %s there is %s", content, stored)
		}
	}
}

// Without the escapes both say the same.
func TestSignatureOfAnotherContentWithoutEscapes(t *testing.T) {
	s := startSendServer(t)
	signed, sent := `{"x":1,"y":2}`, `{"x\":1,\"y":2}`
	req := s.signed(t, "1", transaction(toBob("1", signed)))
	other := s.signed(t, "1", transaction(toBob("1", sent)))
	other.Header.Set("Authorization", req.Header.Get("Authorization"))
	if answer := s.serve(other); answer.Code != http.StatusUnauthorized {
		t.Errorf("%d %s, want 401", answer.Code, answer.Body)
	}
	if stored := s.stored(t); stored != "" {
		t.Errorf("stored %s", stored)
	}
}

func FuzzForVerifying(f *testing.F) {
	for _, message := range []string{
		`{"content":{"\u0000":{"b":1,"a":[]}},"signatures":{},"uri":"/x"}`, `{"\"":"\"","signatures":{"a":1}}`, `{"signatures":1}`, `[]`, `{"a\n":{"b\n":1},"signatures":{}}`,
	} {
		f.Add([]byte(message))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		if !json.Valid(message) {
			return
		}
		got := forVerifying(message)
		if bytes.Equal(got, message) {
			return
		}
		var asked, given map[string]json.RawMessage
		if json.Unmarshal(message, &asked) != nil || json.Unmarshal(got, &given) != nil {
			t.Fatalf("%s becomes %s", message, got)
		}
		delete(given, "signatures")
		rest, err := json.Marshal(given)
		if err != nil {
			t.Fatal(err)
		}
		verified, err := gomatrixserverlib.CanonicalJSON(rest)
		if err != nil || !json.Valid(verified) {
			t.Fatalf("%s is verified as %s, %v", message, verified, err)
		}
	})
}
