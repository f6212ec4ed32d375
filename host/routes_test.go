package host

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const testPublished = types.Position(1000)

// clamp is Module.SinceForSync of a server whose last visible position is testPublished.
func clamp(position types.Position) types.Position {
	reader := &streams.Reader{Published: func() types.Position { return testPublished }}
	return reader.Since(position)
}

func TestSinceWithin(t *testing.T) {
	unchanged := []string{
		"", "nonsense", "s", "sx", "s1_2_3_x", "s1_2_3_", "t5_7", "s0_0_0_9223372036854775808", // malformed
		"s0_0_0_0_0_0_0_0_0", "s1_2_3_1000_5_6_7_8_9", "s1_2_3_999", "s5", "s478_0_0_1000_0_13.dl-0-2",
		"s0_0_0_-4611686018427387904_0_0_0_0_0",
	}
	for _, since := range unchanged {
		if got, changed := sinceWithin(since, clamp); changed || got != since {
			t.Errorf("%q became %q, %v", since, got, changed)
		}
	}
	for since, want := range map[string]string{
		"s1_2_3_1001_5_6_7_8_9":               "s1_2_3_-4611686018427387904_5_6_7_8_9",
		"s1_2_3_9223372036854775807":          "s1_2_3_-4611686018427387904_0_0_0_0_0",
		"s1_2_3_-1_5_6_7_8_9":                 "s1_2_3_-4611686018427387904_5_6_7_8_9",
		"s0_0_0_2000":                         "s0_0_0_-4611686018427387904_0_0_0_0_0",
		"s478_0_0_2000_0_13.dl-0-2":           "s478_0_0_-4611686018427387904_0_13_0_0_0",
		"s4611686018427387904_0_0_2000_0_0_0": "s4611686018427387904_0_0_-4611686018427387905_0_0_0_0_0",
	} {
		if got, changed := sinceWithin(since, clamp); !changed || got != want {
			t.Errorf("%q became %q, %v, want %q", since, got, changed, want)
		}
	}
}

// FuzzSinceToken takes any since token.
func FuzzSinceToken(f *testing.F) {
	f.Fuzz(func(t *testing.T, since string) {
		before, malformed := synctypes.NewStreamTokenFromString(since)
		got, changed := sinceWithin(since, clamp)
		if !changed && got != since {
			t.Fatalf("%q is not changed, but became %q", since, got)
		}
		if malformed != nil {
			if changed {
				t.Fatalf("%q is malformed, but became %q", since, got)
			}
			return
		}
		after, err := synctypes.NewStreamTokenFromString(got)
		if err != nil {
			t.Fatalf("%q became %q: %v", since, got, err)
		}
		if after.SendToDevicePosition > synctypes.StreamPosition(testPublished) {
			t.Errorf("%q is ahead of position %d", got, testPublished)
		}
		if position := types.Position(before.SendToDevicePosition); changed == (position >= 0 && position <= testPublished) && position != streams.BeforeAll {
			t.Errorf("position %d of %q was changed: %v", position, since, changed)
		}
		if changed && after.SendToDevicePosition >= 0 {
			t.Errorf("%q became %q, which does not stand before every message", since, got)
		}
		if after.IsEmpty() && !before.IsEmpty() {
			t.Errorf("%q became %q, which the host takes for none", since, got)
		}
		after.SendToDevicePosition = before.SendToDevicePosition
		if after != before {
			t.Errorf("another position of %q changed: %q", since, got)
		}
		if again, changedAgain := sinceWithin(got, clamp); again != got && changedAgain {
			t.Errorf("%q became %q, then %q", since, got, again)
		}
	})
}

// poolThatNotes keeps the request that it is asked with.
type poolThatNotes struct{ asked *http.Request }

func (p *poolThatNotes) OnIncomingSyncRequest(req *http.Request, _ *userapi.Device) util.JSONResponse {
	p.asked = req
	return util.JSONResponse{Code: http.StatusOK}
}

func TestAnotherSinceKeepsTheRestOfTheRequest(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	const path = "/sync?filter=%7B%22a%22%3A1%7D&timeout=30000&since="
	pool := &poolThatNotes{}
	serve := func(req *http.Request) *http.Request {
		d.serveSync(req, &userapi.Device{UserID: "@bob:x", ID: "PHONE"}, pool)
		return pool.asked
	}
	req := httptest.NewRequest(http.MethodGet, path+"s1_2_3_99999999999999999_5_6_7_8_9&full_state=true", nil)
	original := req.URL.String()
	got := serve(req)
	if since := got.URL.Query().Get("since"); since != "s1_2_3_-4611686018427387904_5_6_7_8_9" {
		t.Errorf("since became %q", since)
	}
	query := got.URL.Query()
	query.Del("since")
	if query.Encode() != "filter=%7B%22a%22%3A1%7D&full_state=true&timeout=30000" || got.URL.Path != "/sync" || got.Method != http.MethodGet {
		t.Errorf("the request became %s", got.URL)
	}
	if req.URL.String() != original {
		t.Errorf("the client's request was changed to %s", req.URL)
	}
	for _, since := range []string{"s1_2_3_50", "", "malformed", "s1.name-2"} {
		req = httptest.NewRequest(http.MethodGet, path+since, nil)
		if got := serve(req); got.URL.String() != req.URL.String() {
			t.Errorf("a request since %q became %s", since, got.URL)
		}
	}
}

// poolThatReads answers with what waits, and meets err afterwards.
type poolThatReads struct {
	provider *provider
	err      error
	read     func() // is called after the reading, if set
}

func (p poolThatReads) OnIncomingSyncRequest(req *http.Request, _ *userapi.Device) util.JSONResponse {
	request := syncRequest()
	p.provider.IncrementalSync(req.Context(), ignoreList{err: sql.ErrNoRows}, request, 0, synctypes.StreamPosition(testPublished))
	if p.read != nil {
		p.read()
	}
	if p.err != nil {
		failSync(req.Context(), p.err)
	}
	return util.JSONResponse{Code: http.StatusOK, JSON: request.Response}
}

// What was read for a /sync that fails later was not handed over: it is in no response. Nor is what was read by a token that has ended
// meanwhile: the queue may be that of another device by then.
func TestOnlyWhatIsInAResponseIsHandedOver(t *testing.T) {
	type ending = func(ctx context.Context, api userapi.UserInternalAPI) error
	type testCase struct {
		err  error
		ends ending
		code int
		want int
	}
	tests := map[string]testCase{
		"answered": {nil, nil, http.StatusOK, 2},
		"failed":   {errors.New("too many connections"), nil, http.StatusInternalServerError, 0},
	}
	for name, ends := range endings() {
		tests[name] = testCase{nil, ends, http.StatusUnauthorized, 0}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := newTestHost(t, &fakeStore{messages: waiting()})
			api := d.WrapUserAPI(newAccounts())
			req := httptest.NewRequest(http.MethodGet, "/sync?since=s1", nil)
			req.Header.Set("Authorization", "Bearer PHONE")
			device := &userapi.Device{UserID: "@bob:x", ID: "PHONE"}
			pool := poolThatReads{provider: newTestProvider(t, d), err: test.err}
			if test.ends != nil {
				pool.read = func() { _ = test.ends(t.Context(), api) } // which has no database to clean up
			}
			if res := d.serveSync(req, device, pool); res.Code != test.code {
				t.Errorf("it is answered with %d %v", res.Code, res.JSON)
			}
			if got := steps(t, d, "user_id=@bob:x&device_id=PHONE"); len(got) != test.want || slices.ContainsFunc(got, func(step string) bool { return step != "handed_over" }) {
				t.Errorf("the steps are %v", got)
			}
		})
	}
}

// steps returns the steps that the trace knows.
func steps(t *testing.T, d *Dendrite, query string) (steps []string) {
	t.Helper()
	for _, route := range d.module.AdminRoutes() {
		if route.Name != "todevice_trace" {
			continue
		}
		res := route.Handle(httptest.NewRequest(route.Method, "/?"+query, nil), "@admin:x", nil)
		found, ok := res.JSON.(*admin.Trace)
		if !ok {
			t.Fatalf("the trace is answered with %d %v", res.Code, res.JSON)
		}
		for _, record := range found.Records {
			steps = append(steps, record.Step)
		}
	}
	return steps
}

// poolThatAnswers answers every request with the same next_batch.
type poolThatAnswers struct{ next synctypes.StreamingToken }

func (p poolThatAnswers) OnIncomingSyncRequest(*http.Request, *userapi.Device) util.JSONResponse {
	return util.JSONResponse{Code: http.StatusOK, JSON: &synctypes.Response{NextBatch: p.next}}
}

// A response of the host whose to_device position is behind that of the since token does not reach the client, unless that one was never handed out.
func TestPositionsNeverGoBackBehindSince(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	const latest = synctypes.StreamPosition(testPublished)
	for _, test := range []struct{ since, next, want synctypes.StreamPosition }{
		{latest, latest - 1, latest},
		{latest - 1, latest - 1, latest - 1},
		{latest - 1, latest, latest},
		{latest + 1000, latest, latest},
	} {
		since := synctypes.StreamingToken{PDUPosition: 3, SendToDevicePosition: test.since, DeviceListPosition: 4}
		pool := poolThatAnswers{synctypes.StreamingToken{PDUPosition: 3, SendToDevicePosition: test.next, DeviceListPosition: 5}}
		req := httptest.NewRequest(http.MethodGet, "/sync?since="+since.String(), nil)
		res := d.serveSync(req, &userapi.Device{UserID: "@bob:x", ID: "PHONE"}, pool)
		want := synctypes.StreamingToken{PDUPosition: 3, SendToDevicePosition: test.want, DeviceListPosition: 5}
		if response, ok := res.JSON.(*synctypes.Response); !ok || response.NextBatch != want {
			t.Errorf("since %d, which the host answers with %d: %v, want %v", test.since, test.next, res.JSON, want)
		}
	}
}
