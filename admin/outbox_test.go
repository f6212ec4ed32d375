package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrix"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func TestDestinations(t *testing.T) {
	each(t, func(f *fixture) {
		const waiting, aside, empty = "a.example.org", "b.example.org", "c.example.org"
		f.line(waiting, "1", at(9))
		f.line(waiting, "2", at(8))
		f.refuse(f.line(waiting, "3", at(7)), 1, now.Add(time.Minute), "400 ")
		f.refuse(f.line(aside, "4", at(6)), 6, time.Time{}, "400 ")
		f.host.until[waiting] = now.Add(time.Hour)
		f.host.givenUp[aside] = true
		got := want[admin.Destinations](f, "GET", "/outbox").Destinations
		if len(got) != 2 {
			f.Fatalf("%+v", got)
		}
		byName := map[string]admin.Destination{got[0].Destination: got[0], got[1].Destination: got[1]}
		if d := byName[waiting]; d.Waiting != 2 || d.Bytes == 0 || *d.OldestTS != now.UnixMilli()-9000 || *d.AgeSeconds != 9 || d.Refused != 1 ||
			d.SetAside != 0 || d.State != "backing_off" || *d.UntilTS != now.Add(time.Hour).UnixMilli() || d.LastError != nil {
			f.Errorf("%+v", d)
		}
		if d := byName[aside]; d.Waiting != 0 || d.OldestPosition != nil || d.Refused != 0 || d.SetAside != 1 || d.State != "given_up" || d.UntilTS != nil {
			f.Errorf("%+v", d)
		}
		f.host.until[waiting] = now.Add(-time.Hour)
		if d := want[admin.Destination](f, "GET", "/outbox/"+waiting); d.State != "ready" || d.UntilTS != nil || d.Waiting != 2 {
			f.Errorf("%+v", d)
		}
		page := want[admin.Destinations](f, "GET", "/outbox?limit=1")
		rest := want[admin.Destinations](f, "GET", "/outbox?limit=1&after="+page.Next)
		if page.Destinations[0].Destination == rest.Destinations[0].Destination || rest.Next != "" {
			f.Errorf("pages: %+v %+v", page, rest)
		}
		for _, path := range []string{"/outbox/" + empty, "/outbox/" + empty + "/refused"} {
			f.refused("GET", path, http.StatusNotFound, "M_NOT_FOUND")
		}
		f.refused("POST", "/outbox/"+empty+"/retry", http.StatusNotFound, "M_NOT_FOUND")
		f.refused("DELETE", "/outbox/"+empty+"/refused", http.StatusNotFound, "M_NOT_FOUND")
	})
}

func TestLastError(t *testing.T) {
	f := onSQLite(t)
	f.line(there, "1", at(9))
	f.start()
	long := strings.Repeat("\u00e9", 300)
	for name, test := range map[string]struct {
		err  error
		want admin.Answer
	}{
		"no answer": {errors.New("connection refused"), admin.Answer{Error: "connection refused"}},
		"too long":  {errors.New(long), admin.Answer{Error: long[:400]}},
		"an answer": {
			fmt.Errorf("sending: %w", gomatrix.HTTPError{Code: 502, Contents: []byte(`{"errcode":"M_UNKNOWN","error":"down","echo":"` + canary + `"}`)}),
			admin.Answer{Status: 502, ErrCode: "M_UNKNOWN", Error: "down"},
		},
		"an answer of a proxy": {gomatrix.HTTPError{Code: 503, Contents: []byte(canary)}, admin.Answer{Status: 503}},
		"an errcode of its own": {
			gomatrix.HTTPError{Code: 503, Contents: []byte(`{"errcode":"two words","error":7}`)}, admin.Answer{Status: 503},
		},
	} {
		f.send(there, test.err)
		d := want[admin.Destination](f, "GET", "/outbox/"+there)
		if d.LastError == nil || d.LastError.TS != now.UnixMilli() || d.LastError.Answer != test.want {
			t.Errorf("%s: %+v", name, d.LastError)
		}
	}
	f.refuse(f.line(there, "2", at(8)), 1, time.Time{}, "400 ") // so that something is left
	f.send(there, nil)
	if d := want[admin.Destination](f, "GET", "/outbox/"+there); d.LastError != nil || d.Waiting != 0 {
		t.Errorf("after a transaction has succeeded: %+v", d)
	}
}

func TestRefused(t *testing.T) {
	each(t, func(f *fixture) {
		f.refuse(f.line(there, "first", at(9)), 2, now.Add(time.Minute), `400 {"errcode":"M_BAD_JSON","error":"no","echo":"`+canary+`"}`)
		f.refuse(f.line(there, "second", at(8)), 6, time.Time{}, `413 {"errcode":"M_TOO_LARGE","error":"`+strings.Repeat("x", 2000))
		f.refuse(f.line(there, "third", at(7)), 1, now, canary)
		got := want[admin.Refused](f, "GET", "/outbox/"+there+"/refused").Refused
		if len(got) != 3 {
			f.Fatalf("%+v", got)
		}
		if r := got[0]; r.Position != int64(at(9)) || r.MessageID != "first" || r.Origin != here || r.Attempts != 2 ||
			*r.RetryTS != now.Add(time.Minute).UnixMilli() || r.Answer != (admin.Answer{Status: 400, ErrCode: "M_BAD_JSON", Error: "no"}) {
			f.Errorf("%+v", r)
		}
		if r := got[1]; r.RetryTS != nil || r.Answer != (admin.Answer{Status: 413, ErrCode: "M_TOO_LARGE"}) {
			f.Errorf("%+v", r)
		}
		if r := got[2]; r.Answer != (admin.Answer{}) {
			f.Errorf("%+v", r)
		}
		page := want[admin.Refused](f, "GET", "/outbox/"+there+"/refused?limit=2")
		rest := want[admin.Refused](f, "GET", "/outbox/"+there+"/refused?after="+page.Next)
		if len(page.Refused) != 2 || len(rest.Refused) != 1 || rest.Refused[0].MessageID != "third" || rest.Next != "" {
			f.Errorf("pages: %+v %+v", page, rest)
		}
		f.line("d.example.org", "4", at(5))
		if none := want[admin.Refused](f, "GET", "/outbox/d.example.org/refused"); none.Refused == nil || len(none.Refused) != 0 {
			f.Errorf("%+v", none)
		}
	})
}

func TestRetryAndDiscard(t *testing.T) {
	each(t, func(f *fixture) {
		for i, id := range []string{"a", "b", "c", "d"} {
			f.refuse(f.line(there, id, at(9)+types.Position(i)), 6, time.Time{}, "400 ")
		}
		path := func(i int) string { return fmt.Sprintf("/outbox/%s/refused/%d", there, at(9)+types.Position(i)) }
		due := func() string {
			var ids []string
			for _, r := range want[admin.Refused](f, "GET", "/outbox/"+there+"/refused").Refused {
				if r.RetryTS != nil && *r.RetryTS == now.UnixMilli() {
					ids = append(ids, r.MessageID)
				}
			}
			return strings.Join(ids, "")
		}
		if got := want[admin.Retried](f, "POST", path(1)+"/retry"); got.Retried != 1 || due() != "b" || len(f.host.revived) != 1 {
			f.Errorf("%+v, due are %s, revived %v", got, due(), f.host.revived)
		}
		if got := want[admin.Discarded](f, "DELETE", path(0)); got.Discarded != 1 {
			f.Errorf("%+v", got)
		}
		f.refused("DELETE", path(0), http.StatusNotFound, "M_NOT_FOUND")
		f.refused("POST", path(0)+"/retry", http.StatusNotFound, "M_NOT_FOUND")
		if len(f.host.revived) != 1 {
			f.Errorf("revived for nothing: %v", f.host.revived)
		}
		if got := want[admin.Retried](f, "POST", "/outbox/"+there+"/retry"); got.Retried != 3 || due() != "bcd" || len(f.host.revived) != 2 {
			f.Errorf("%+v, due are %s, revived %v", got, due(), f.host.revived)
		}
		if got := want[admin.Discarded](f, "DELETE", "/outbox/"+there+"/refused"); got.Discarded != 3 {
			f.Errorf("%+v", got)
		}
		f.refused("GET", "/outbox/"+there, http.StatusNotFound, "M_NOT_FOUND")
		for _, id := range []string{"a", "b", "c", "d"} {
			records := f.ring.Find(trace.Query{EDUID: id}).Records
			if len(records) != 1 || records[0].Step != trace.Dropped || records[0].Reason != trace.Discarded || records[0].Destination != there {
				f.Errorf("the trace has of %s %+v", id, records)
			}
		}
		f.line(there, "waiting", at(1))
		if got := want[admin.Retried](f, "POST", "/outbox/"+there+"/retry"); got.Retried != 0 || len(f.host.revived) != 3 {
			f.Errorf("%+v, revived %v", got, f.host.revived)
		}
		for _, what := range []string{"had a refused message tried again", "had a destination tried again", "discarded what a destination refused"} {
			if !strings.Contains(f.log.String(), what) {
				f.Errorf("%q is not in the log", what)
			}
		}
	})
}

// cutOff is an outbox of which every change fails after the first two EDUs.
type cutOff struct{ admin.Outbox }

func (cutOff) Retry(context.Context, string) (int, error) { return 2, storage.ErrTransient }
func (cutOff) Discard(context.Context, string, types.Position) ([]storage.Refusal, error) {
	return make([]storage.Refusal, 2), storage.ErrTransient
}

// What was done before an error is in the log, with who has done it.
func TestRetryAndDiscardThatAreCutOff(t *testing.T) {
	for method, path := range map[string]string{"POST": "/outbox/" + there + "/retry", "DELETE": "/outbox/" + there + "/refused"} {
		f := onSQLite(t)
		f.line(there, "1", at(9))
		f.options.Outbox = cutOff{f.outbox}
		f.refused(method, path, http.StatusServiceUnavailable, "M_UNKNOWN")
		done := map[string]string{"POST": "retried=2", "DELETE": "discarded=2"}[method]
		for _, what := range []string{`admin="@admin:here.example.org"`, done} {
			if !strings.Contains(f.log.String(), what) {
				t.Errorf("%s %s: %s is not in the log:\n%s", method, path, what, f.log.String())
			}
		}
	}
}
