package outbox_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrix"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

func TestParseAnswer(t *testing.T) {
	long := strings.Repeat("é", 1000)
	for kept, want := range map[string]outbox.Answer{
		``: {}, `connection reset`: {}, `none {"errcode":"M_X"}`: {},
		`400`:                   {Status: 400},
		`413 <html>`:            {Status: 413},
		`400 ["errcode","M_X"]`: {Status: 400},
		`400 {"errcode":"M_X","error":"why","other":{"error":"no"}}`: {Status: 400, ErrCode: "M_X", Error: "why"},
		`400 {"errcode":1,"error":["why"]}`:                          {Status: 400},
		`400 {"errcode":"M_X","error":"cut o`:                        {Status: 400, ErrCode: "M_X"},
		`400 {"errcode":"` + long + `","error":"` + long + `"}`:      {Status: 400, ErrCode: long[:400], Error: long[:400]},
	} {
		if got := outbox.ParseAnswer(kept); got != want {
			t.Errorf("%.60q is %+v, want %+v", kept, got, want)
		}
	}
}

// What other servers' parsers quote of a message is no operator's to read.
func TestErrorsDoNotQuoteMessages(t *testing.T) {
	const secret = "SECRET"
	for text, want := range map[string]string{
		// Synapse, whose jsonschema repeats what does not fit
		"Content not JSON.":                          "Content not JSON.",
		"{'body': 'SECRET'} is not of type 'string'": "…",
		"Invalid EDU: [1, 'SECRET']":                 "Invalid EDU: …",
		`'messages' is a required property`:          `'messages' is a required property`,
		// serde
		`invalid type: string "SECRET", expected a map at line 1 column 42`:          `invalid type: string "…", expected a map at line 1 column 42`,
		`invalid value: string "a\"SECRET\"", expected a user ID at line 1 column 9`: `invalid value: string "…", expected a user ID at line 1 column 9`,
		"missing field `sender` at line 1 column 2":                                  "missing field `sender` at line 1 column 2",
		`expected "a\\", got "SECRET"`:                                               `expected "…", got "…"`,
		// encoding/json
		"json: cannot unmarshal string into Go struct field EDU.messages of type map[string]json.RawMessage": "json: cannot unmarshal string into Go struct field EDU.messages of type map…",
		`parsing time "SECRET" as "2006-01-02": cannot parse`:                                                `parsing time "…" as "…": cannot parse`,
		"invalid character 'x' looking for beginning of value":                                               "invalid character 'x' looking for beginning of value",
		// whoever else
		`bad EDU: {"body":"SECRET"}`: "bad EDU: …",
		`cut off in "SECR`:           `cut off in "…"`,
		`cut off in "SECRET\`:        `cut off in "…"`,
		"two lines \"SE\nCRET\"":     `two lines "…"`,
		`says "SECRET {"`:            `says "…"…`,
	} {
		body, err := json.Marshal(map[string]string{"errcode": "M_BAD_JSON", "error": text})
		if err != nil {
			t.Fatal(err)
		}
		if got := outbox.ParseAnswer("400 " + string(body)); got.Error != want || strings.Contains(got.Error, secret) {
			t.Errorf("%s is shown as %s, want %s", text, got.Error, want)
		}
	}
}

// Of what another server writes only so much is read and shown, and as valid text.
func TestStateBoundsTheAnswer(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	far := `{"error":"why","pad":"` + strings.Repeat("x", 8*outbox.MaxAnswerBytes) + `","errcode":"M_FAR"}`
	for _, test := range []struct {
		err  error
		want outbox.Answer
	}{
		{gomatrix.HTTPError{Code: 503, Contents: []byte(far)}, outbox.Answer{Status: 503, Error: "why"}},
		{errors.New(strings.Repeat("é", 1000)), outbox.Answer{Error: strings.Repeat("é", 200)}},
		{errors.New("x\xffy"), outbox.Answer{Error: "x\ufffdy"}},
		{
			errors.New(`Put "https://there.example.org/": dial tcp [::1]:8448: connection refused`),
			outbox.Answer{Error: `Put "…": dial tcp [::1]:8448: connection refused`},
		},
		{errors.New(`malformed MIME header line: {"body":"what was sent"}`), outbox.Answer{Error: "malformed MIME header line: …"}},
	} {
		f.remote.fails(test.err)
		if f.send() == nil {
			t.Error("Send returned no error")
		}
		if s := f.State(there); s.Failure == nil || s.Failure.Answer != test.want {
			t.Errorf("%.60q is shown as %+v", test.err, s.Failure)
		}
	}
}
