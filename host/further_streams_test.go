package host

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/util"
	"github.com/tidwall/gjson"

	"github.com/matrix-org/dendrite/todevicemodule/positions"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// newsStream has the news "n" up to its latest position for whom it is for, which is everybody if that is nil.
type newsStream struct {
	latest atomic.Int64
	failed atomic.Pointer[error]
	isFor  func(types.Device) bool
	reads  chan struct{} // receives for each time that it was asked how far it is, if set
	held   chan struct{} // keeps back the answer until it is closed, if set
}

func (s *newsStream) Latest(ctx context.Context) (positions.Position, error) {
	latest, failed := positions.Position(s.latest.Load()), s.failed.Load()
	if s.reads != nil {
		select {
		case s.reads <- struct{}{}:
		case <-ctx.Done():
		}
	}
	if s.held != nil {
		<-s.held
	}
	if failed != nil {
		return 0, *failed
	}
	return latest, nil
}

func (s *newsStream) Complete(ctx context.Context, device types.Device, to positions.Position, limits positions.Limits) (positions.Part, error) {
	return s.Incremental(ctx, device, 0, to, limits)
}

func (s *newsStream) Incremental(_ context.Context, device types.Device, from, to positions.Position, limits positions.Limits) (positions.Part, error) {
	page := positions.NewPage(limits)
	for p := from + 1; p <= to && (s.isFor == nil || s.isFor(device)); p++ {
		if !page.Add(p, json.RawMessage(`"n"`)) {
			break
		}
	}
	return page.Part(to), nil
}

func (s *newsStream) fail(err error) { s.failed.Store(&err) }

// keyless are accounts without one-time keys.
type keyless struct{ *accounts }

func (keyless) QueryOneTimeKeys(context.Context, *userapi.QueryOneTimeKeysRequest, *userapi.QueryOneTimeKeysResponse) error {
	return nil
}

const newsKey = "org.example.news"

// newStreamsHost returns a host with the stream news, whose next /sync is Bob's.
func newStreamsHost(t *testing.T, store *fakeStore, news *newsStream) *Dendrite {
	t.Helper()
	d := newTestHost(t, store)
	registry, err := positions.NewRegistry(positions.Stream{Name: "news", Key: newsKey, Provider: news})
	if err != nil {
		t.Fatal(err)
	}
	d.UseStreams(registry)
	d.WrapUserAPI(keyless{newAccounts()})
	return d
}

func (d *Dendrite) serveBob(t *testing.T, query string, pool syncPool) util.JSONResponse {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, "/sync?"+query, nil)
	req.Header.Set("Authorization", "Bearer PHONE")
	return d.serveSync(req, &userapi.Device{UserID: "@bob:x", ID: "PHONE"}, pool)
}

// waitingPool waits as the host's does, until its client gives up or something comes, and notes what it was asked.
type waitingPool struct {
	provider *provider
	asked    chan string // timeout and since
	comes    chan struct{}
}

func newWaitingPool(t *testing.T, d *Dendrite) *waitingPool {
	return &waitingPool{newTestProvider(t, d), make(chan string, 10), make(chan struct{})}
}

func (p *waitingPool) OnIncomingSyncRequest(req *http.Request, _ *userapi.Device) util.JSONResponse {
	query := req.URL.Query()
	timeout := query.Get("timeout")
	p.asked <- timeout + " " + query.Get("since")
	request := syncRequest()
	request.Response.NextBatch = synctypes.StreamingToken{PDUPosition: 7}
	if waits(timeout) {
		select {
		case <-req.Context().Done():
			return util.JSONResponse{Code: http.StatusOK, JSON: request.Response}
		case <-p.comes:
		}
	}
	p.provider.IncrementalSync(req.Context(), ignoreList{err: sql.ErrNoRows}, request, 0, synctypes.StreamPosition(testPublished))
	return util.JSONResponse{Code: http.StatusOK, JSON: request.Response}
}

// bodyOf returns the response as the client gets it.
func bodyOf(t *testing.T, res util.JSONResponse) string {
	t.Helper()
	text, err := json.Marshal(res.JSON)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestStreamsAreInTheResponse(t *testing.T) {
	for _, test := range []struct {
		query, next, part string
		timeout           string // that the pool is asked with
	}{
		{"", "s7_0_0_0_0_0_0_0_0.news-3", `{"events":["n","n","n"]}`, "0"},
		{"timeout=30000", "s7_0_0_0_0_0_0_0_0.news-3", `{"events":["n","n","n"]}`, "0"},
		{"since=s1&timeout=30000", "s7_0_0_0_0_0_0_0_0.news-3", `{"events":["n","n","n"]}`, "0"},
		{"since=s1.news-1&timeout=30000", "s7_0_0_0_0_0_0_0_0.news-3", `{"events":["n","n"]}`, "0"},
		{"since=s1.other-5.news-2", "s7_0_0_0_0_0_0_0_0.news-3.other-5", `{"events":["n"]}`, "0"},
		{"since=s1.news-3.other-5", "s7_0_0_0_0_0_0_0_0.news-3.other-5", "", ""},
		{"since=s1.news-9.dl-0-2&timeout=no", "s7_0_0_0_0_0_0_0_0.news-3", "", "no"},
	} {
		t.Run(test.query, func(t *testing.T) {
			news := &newsStream{}
			news.latest.Store(3)
			d := newStreamsHost(t, &fakeStore{messages: waiting()}, news)
			pool := newWaitingPool(t, d)
			res := d.serveBob(t, test.query, pool)
			text := bodyOf(t, res)
			if res.Code != http.StatusOK || gjson.Get(text, "next_batch").String() != test.next || gjson.Get(text, `org\.example\.news`).Raw != test.part {
				t.Errorf("got %d %s", res.Code, text)
			}
			if n := gjson.Get(text, "to_device.events.#").Int(); n != int64(len(waiting())) {
				t.Errorf("there are %d messages beside it", n)
			}
			if asked, _, _ := strings.Cut(<-pool.asked, " "); asked != test.timeout || len(pool.asked) > 0 {
				t.Errorf("the pool was asked with a timeout of %q, and %d times more", asked, len(pool.asked))
			}
		})
	}
}

// A /sync that waits returns with what comes, and with the messages that came beside it, each handed over once.
func TestStreamsWake(t *testing.T) {
	news := &newsStream{isFor: func(device types.Device) bool { return device.DeviceID == "PHONE" }}
	d := newStreamsHost(t, &fakeStore{messages: waiting()}, news)
	pool := newWaitingPool(t, d)
	answered := make(chan util.JSONResponse)
	go func() { answered <- d.serveBob(t, "since=s1.news-0&timeout=30000&filter=4", pool) }()
	if asked := <-pool.asked; asked != "30000 s1.news-0" {
		t.Errorf("the pool was asked with %q", asked)
	}
	news.latest.Store(2)
	d.streams.WakeUsers("@bob:x")
	text := bodyOf(t, <-answered)
	if gjson.Get(text, "next_batch").String() != "s7_0_0_0_0_0_0_0_0.news-2" || gjson.Get(text, `org\.example\.news.events.#`).Int() != 2 {
		t.Errorf("got %s", text)
	}
	if asked := <-pool.asked; asked != "0 s1.news-0" {
		t.Errorf("then the pool was asked with %q", asked)
	}
	if got := steps(t, d, "user_id=@bob:x&device_id=PHONE"); len(got) != len(waiting()) {
		t.Errorf("the steps of the messages are %v", got)
	}
}

// What wakes and is not for the device leaves the pool waiting, and so does a call too many.
func TestStreamsOfOthersDoNotEndTheWait(t *testing.T) {
	news := &newsStream{isFor: func(types.Device) bool { return false }, reads: make(chan struct{})}
	d := newStreamsHost(t, &fakeStore{messages: waiting()}, news)
	pool := newWaitingPool(t, d)
	answered := make(chan util.JSONResponse)
	go func() { answered <- d.serveBob(t, "since=s1.news-0&timeout=30000", pool) }()
	<-news.reads
	for range 3 {
		news.latest.Add(1)
		d.streams.WakeAll()
		<-news.reads
	}
	pool.comes <- struct{}{}
	text := bodyOf(t, <-answered)
	if got := gjson.Get(text, "next_batch").String(); len(pool.asked) != 1 || !strings.HasPrefix(got, "s7_0_0_0_0_0_0_0_0.news-") {
		t.Errorf("the pool was asked %d times, and the answer is %s", len(pool.asked), text)
	}
	if n := gjson.Get(text, "to_device.events.#").Int(); n != int64(len(waiting())) {
		t.Errorf("there are %d messages", n)
	}
}

// No moment is left in which a call that wakes is not seen: what comes after the first look and before the pool waits ends the wait too.
func TestStreamsWakeBetweenTheFirstLookAndTheWait(t *testing.T) {
	news := &newsStream{reads: make(chan struct{}, 10), held: make(chan struct{})}
	d := newStreamsHost(t, &fakeStore{}, news)
	answered := make(chan util.JSONResponse)
	news.latest.Store(1)
	pool := newWaitingPool(t, d)
	go func() { answered <- d.serveBob(t, "since=s1.news-1&timeout=30000", pool) }()
	<-news.reads
	news.latest.Store(2)
	d.streams.WakeAll()
	close(news.held)
	select {
	case res := <-answered:
		if got := gjson.Get(bodyOf(t, res), "next_batch").String(); got != "s7_0_0_0_0_0_0_0_0.news-2" {
			t.Errorf("next_batch is %s", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("it still waits")
	}
}

// A stream that can't be read is a 5xx, at once and while the pool waits. Nothing was handed over, and the same since token is good.
func TestStreamThatFails(t *testing.T) {
	for name, while := range map[string]bool{"at once": false, "while the pool waits": true} {
		t.Run(name, func(t *testing.T) {
			news := &newsStream{}
			d := newStreamsHost(t, &fakeStore{messages: waiting()}, news)
			pool := newWaitingPool(t, d)
			answered := make(chan util.JSONResponse)
			if !while {
				news.fail(errors.New("away"))
			}
			go func() { answered <- d.serveBob(t, "since=s1.news-0&timeout=30000", pool) }()
			if while {
				<-pool.asked
				news.fail(errors.New("away"))
				d.streams.WakeAll()
			}
			if res := <-answered; res.Code != http.StatusInternalServerError {
				t.Errorf("it is answered with %d %v", res.Code, res.JSON)
			}
			if got := steps(t, d, "user_id=@bob:x&device_id=PHONE"); len(got) != 0 {
				t.Errorf("the steps of the messages are %v", got)
			}
			news.failed.Store(nil)
			news.latest.Store(2)
			if text := bodyOf(t, d.serveBob(t, "since=s1.news-0&timeout=30000", pool)); gjson.Get(text, `org\.example\.news.events.#`).Int() != 2 {
				t.Errorf("then: %s", text)
			}
		})
	}
}

// What was read for a device is not for the next one of its ID.
func TestStreamsOfADeletedDevice(t *testing.T) {
	for name, ends := range endings() {
		t.Run(name, func(t *testing.T) {
			news := &newsStream{}
			news.latest.Store(1)
			d := newTestHost(t, &fakeStore{})
			registry, err := positions.NewRegistry(positions.Stream{Name: "news", Key: newsKey, Provider: news})
			if err != nil {
				t.Fatal(err)
			}
			d.UseStreams(registry)
			api := d.WrapUserAPI(keyless{newAccounts()})
			pool := poolThatReads{provider: newTestProvider(t, d), read: func() { _ = ends(t.Context(), api) }}
			if res := d.serveBob(t, "since=s1.news-0", pool); res.Code != http.StatusUnauthorized {
				t.Errorf("it is answered with %d %v", res.Code, res.JSON)
			}
		})
	}
}

// A failure of the host's own part is the answer, whatever the streams have.
func TestStreamsBesideAFailure(t *testing.T) {
	news := &newsStream{}
	news.latest.Store(1)
	d := newStreamsHost(t, &fakeStore{err: errors.New("away")}, news)
	if res := d.serveBob(t, "since=s1.news-0", newWaitingPool(t, d)); res.Code != http.StatusInternalServerError {
		t.Errorf("it is answered with %d %v", res.Code, res.JSON)
	}
}

// A server without streams carries their positions along.
func TestPositionsOfUnknownStreamsAreCarriedAlong(t *testing.T) {
	d := newTestHost(t, &fakeStore{})
	pool := poolThatAnswers{synctypes.StreamingToken{PDUPosition: 7}}
	for query, want := range map[string]string{
		"since=s1.news-3":                       "s7_0_0_0_0_0_0_0_0.news-3",
		"since=s1.news-3.other-5&timeout=30000": "s7_0_0_0_0_0_0_0_0.news-3.other-5",
		"since=s478_0_0_0_0_13.dl-0-2":          "s7_0_0_0_0_0_0_0_0",
		"since=s1%2Enews-3":                     "s7_0_0_0_0_0_0_0_0.news-3",
		"since=s1":                              "s7_0_0_0_0_0_0_0_0",
		"":                                      "s7_0_0_0_0_0_0_0_0",
	} {
		if query == "" {
			d.WrapUserAPI(keyless{newAccounts()})
		}
		if got := gjson.Get(bodyOf(t, d.serveBob(t, query, pool)), "next_batch").String(); got != want {
			t.Errorf("%s: next_batch is %s, want %s", query, got, want)
		}
	}
}

// No stream can take the place of something that the host has in a response.
func TestStreamsCanNotTakeTheHostsKeys(t *testing.T) {
	response := reflect.TypeFor[synctypes.Response]()
	for i := range response.NumField() {
		key, _, _ := strings.Cut(response.Field(i).Tag.Get("json"), ",")
		if _, err := positions.NewRegistry(positions.Stream{Name: "news", Key: key, Provider: &newsStream{}}); key == "" || err == nil {
			t.Errorf("a stream can have the key %q", key)
		}
	}
}

// The host's response is the same beside the streams, but for next_batch.
func TestStreamsLeaveTheResponseAlone(t *testing.T) {
	news := &newsStream{}
	news.latest.Store(1)
	with, without := newStreamsHost(t, &fakeStore{messages: waiting()}, news), newTestHost(t, &fakeStore{messages: waiting()})
	without.WrapUserAPI(keyless{newAccounts()})
	got := bodyOf(t, with.serveBob(t, "since=s1.news-0", newWaitingPool(t, with)))
	want := bodyOf(t, without.serveBob(t, "since=s1", newWaitingPool(t, without)))
	want = strings.Replace(want, `s7_0_0_0_0_0_0_0_0"`, `s7_0_0_0_0_0_0_0_0.news-1"`, 1)
	want = strings.TrimSuffix(want, "}") + `,"` + newsKey + `":{"events":["n"]}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
