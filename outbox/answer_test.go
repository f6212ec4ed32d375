package outbox_test

import (
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
