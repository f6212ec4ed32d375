package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"
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
	a := Answer{Status: res.StatusCode}
	var err error
	if a.Body, err = io.ReadAll(res.Body); err != nil {
		t.Fatal(err)
	}
	var refusal struct {
		ErrCode string `json:"errcode"`
		Message string `json:"error"`
	}
	if err = json.Unmarshal(a.Body, &refusal); err != nil {
		t.Fatalf("the answer is not JSON: %q", a.Body)
	}
	a.ErrCode, a.Message = refusal.ErrCode, refusal.Message
	return a
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
