package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	here   = "here.example.org"
	there  = "there.example.org"
	canary = "CONTENT-OF-A-MESSAGE"
)

// now is the tests' time; positions of messages are a while before it.
var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// at is the position of a message that was stored so many seconds ago.
func at(seconds int64) types.Position { return types.Position(now.UnixMicro() - seconds*1e6) }

// fixture is an API on a real store and a real outbox, behind a router like the host's.
type fixture struct {
	*testing.T
	store   *testdb.Store
	options admin.Options
	outbox  *outbox.Outbox
	host    *fakeHost
	ring    *trace.Ring
	devices map[string][]string // that exist, by user
	log     bytes.Buffer
	last    types.Position
	purge   types.Position // through which is purged
}

func each(t *testing.T, f func(*fixture)) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) { f(newFixture(t, open(t))) })
}

func onSQLite(t *testing.T) *fixture { return newFixture(t, testdb.SQLite(t)(t)) }

func newFixture(t *testing.T, store *testdb.Store) *fixture {
	t.Helper()
	f := &fixture{T: t, store: store, devices: map[string][]string{}, host: &fakeHost{until: map[string]time.Time{}, givenUp: map[string]bool{}}, purge: at(0)}
	f.must(store.Migrate(t.Context()))
	var err error
	f.last, err = store.Claim(t.Context(), "writer", 1)
	f.must(err)
	logger := logrus.New()
	logger.SetOutput(&f.log)
	logger.SetLevel(logrus.DebugLevel)
	log := logrus.NewEntry(logger)
	clock := func() time.Time { return now }
	f.ring = trace.New(trace.Options{Capacity: 1000, Log: log, Now: clock})
	f.outbox = outbox.New(outbox.Options{
		Store: store, Aside: store, Host: f.host, Log: log, Now: clock, Linger: time.Millisecond, Trace: f.ring,
	})
	f.options = admin.Options{
		StoredAt:    func(p types.Position) (time.Time, bool) { return p.Time(), p > 1000 }, // the first are the host's own
		Store:       store,
		Outbox:      f.outbox,
		UserDevices: func(_ context.Context, userID string) ([]string, error) { return f.devices[userID], nil },
		IsLocal:     func(serverName string) bool { return serverName == here },
		Published:   func() types.Position { return f.purge },
		Purge:       store.Purge,
		Find:        f.ring.Find,
		Info: func() admin.Info {
			return admin.Info{
				Version: "v1.2.3", Started: now.Add(-time.Hour), LastPosition: f.last,
				Counters: map[string]float64{`things_total{kind="a"}`: 3},
			}
		},
		Log: log,
		Now: clock,
	}
	t.Cleanup(func() {
		if strings.Contains(f.log.String(), canary) {
			t.Errorf("the log has a content in it:\n%s", f.log.String())
		}
	})
	return f
}

// start has the outbox know what is kept; without it nothing is sent to anybody.
func (f *fixture) start() {
	f.Helper()
	f.must(f.outbox.Start(f.Context()))
	f.Cleanup(func() { f.must(f.outbox.Stop(context.Background())) })
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// message is one to store. Its content has the canary in it.
type message struct {
	device   types.Device
	position types.Position
	id       string // org.matrix.msgid
}

func (f *fixture) add(messages ...message) {
	f.Helper()
	for _, m := range messages {
		content := fmt.Sprintf(`{"body":%q,"org.matrix.msgid":%q}`, canary, m.id)
		f.commit(storage.Batch{Deliveries: []storage.Delivery{{
			Position: m.position, Sender: "@alice:" + here, Type: "m.test", Copies: []storage.Copy{{Device: m.device, Content: []byte(content)}},
		}}})
	}
}

func (f *fixture) commit(b storage.Batch) {
	f.Helper()
	b.Writer, b.Previous, b.Last = "writer", f.last, max(f.last+1, at(0))
	f.must(f.store.Commit(f.Context(), b))
	f.last = b.Last
}

// line adds an EDU to the line of a destination.
func (f *fixture) line(destination, id string, position types.Position) storage.EDU {
	f.Helper()
	edu := storage.EDU{
		Destination: destination, Position: position, Origin: here, MessageID: id, Content: []byte(`{"body":"` + canary + `"}`),
	}
	f.commit(storage.Batch{EDUs: []storage.EDU{edu}})
	return edu
}

// refuse has an EDU stand aside.
func (f *fixture) refuse(edu storage.EDU, attempts int, retryAt time.Time, answer string) {
	f.Helper()
	f.must(f.store.Refuse(f.Context(), storage.Refusal{EDU: edu, Attempts: attempts, RetryAt: retryAt, Answer: answer}))
}

// request sends one and returns its answer, in which no content may be.
func (f *fixture) request(method, path string) (int, []byte) {
	f.Helper()
	router := mux.NewRouter().SkipClean(true).UseEncodedPath()
	for _, route := range admin.New(f.options).Routes() {
		router.HandleFunc(route.Path, func(w http.ResponseWriter, req *http.Request) {
			variables := mux.Vars(req)
			for name, value := range variables {
				variables[name], _ = url.PathUnescape(value)
			}
			res := route.Handle(req, "@admin:"+here, variables)
			w.WriteHeader(res.Code)
			_ = json.NewEncoder(w).Encode(res.JSON)
		}).Methods(route.Method)
	}
	w := httptest.NewRecorder()
	router.ServeHTTP(w, httptest.NewRequest(method, path, nil).WithContext(f.Context()))
	if strings.Contains(w.Body.String(), canary) {
		f.Errorf("%s %s shows a content: %s", method, path, w.Body)
	}
	return w.Code, w.Body.Bytes()
}

// want sends a request that has to be answered with 200.
func want[T any](f *fixture, method, path string) (res T) {
	f.Helper()
	code, body := f.request(method, path)
	if code != http.StatusOK {
		f.Fatalf("%s %s: %d %s", method, path, code, body)
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	f.must(decoder.Decode(&res))
	return res
}

// refused sends a request that has to be refused with a sentence.
func (f *fixture) refused(method, path string, status int, errcode string) {
	f.Helper()
	code, body := f.request(method, path)
	var answer struct{ ErrCode, Error string }
	f.must(json.Unmarshal(body, &answer))
	if code != status || answer.ErrCode != errcode || !strings.HasSuffix(answer.Error, ".") {
		f.Errorf("%s %s: want %d %s, got %d %s", method, path, status, errcode, code, body)
	}
}

// fakeHost is a federation sender that nobody hears.
type fakeHost struct {
	until   map[string]time.Time
	givenUp map[string]bool
	revived []string
}

func (h *fakeHost) Ring(context.Context, string) error  { return nil }
func (h *fakeHost) Reach(context.Context, string) error { return nil }
func (h *fakeHost) Revive(destination string)           { h.revived = append(h.revived, destination) }
func (h *fakeHost) Backoff(destination string) (time.Time, bool) {
	return h.until[destination], h.givenUp[destination]
}

// send has the host send to a destination, which answers with err.
func (f *fixture) send(destination string, err error) {
	f.Helper()
	t := gomatrixserverlib.Transaction{TransactionID: "1", Origin: here, Destination: spec.ServerName(destination)}
	if got := f.outbox.Send(f.Context(), t, func(context.Context, gomatrixserverlib.Transaction) error { return err }); (got == nil) != (err == nil) {
		f.Fatalf("sending: %v", got)
	}
}
