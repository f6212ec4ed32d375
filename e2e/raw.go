package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
)

// rawPut sends a body to a URL as both are, where mautrix would put them right first.
func rawPut(t testing.TB, c *Client, target string, body []byte) Answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, target, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.AccessToken)
	req.Header.Set("Content-Type", "application/json")
	res, err := (&http.Client{Transport: transport, Timeout: deadline}).Do(req)
	if err != nil {
		return Answer{Err: err}
	}
	defer res.Body.Close() //nolint:errcheck
	return readAnswer(t, res)
}

func readAnswer(t testing.TB, res *http.Response) Answer {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return parseAnswer(t, res.StatusCode, body)
}

func parseAnswer(t testing.TB, status int, body []byte) Answer {
	t.Helper()
	var refusal struct {
		ErrCode string `json:"errcode"`
		Message string `json:"error"`
	}
	if err := json.Unmarshal(body, &refusal); err != nil {
		t.Fatalf("the answer is not JSON: %q", body)
	}
	return Answer{Status: status, Body: body, ErrCode: refusal.ErrCode, Message: refusal.Message}
}

// wantSameJSON compares two documents token by token: the order of keys and the digits of
// numbers count, white space and the way a character is written do not.
func wantSameJSON(t testing.TB, got, want []byte) {
	t.Helper()
	a, b := tokens(t, got), tokens(t, want)
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			t.Fatalf("want the content %.500s\ngot %.500s", want, got)
		}
	}
}

func tokens(t testing.TB, document []byte) []json.Token {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var out []json.Token
	for {
		token, err := d.Token()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatalf("%v: %.500s", err, document)
		}
		out = append(out, token)
	}
}

// canonical returns the canonical JSON of a document that was parsed before.
func canonical(document json.RawMessage) []byte {
	out, err := gomatrixserverlib.CanonicalJSON(document)
	if err != nil {
		panic(err)
	}
	return out
}
