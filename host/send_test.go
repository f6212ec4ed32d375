package host

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/federationapi"
	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/httputil"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	roomserver "github.com/matrix-org/dendrite/roomserver/api"
	"github.com/matrix-org/dendrite/setup"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	hosttest "github.com/matrix-org/dendrite/test"
	"github.com/matrix-org/dendrite/test/testrig"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
	"github.com/nats-io/nats.go"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// accountsHost is a host with bob's phone, for a module on a real store.
type accountsHost struct {
	todevicemodule.Host
	store storage.Store
}

func (h accountsHost) Store(todevicemodule.DatabaseConfig) (storage.Store, error) {
	return h.store, nil
}
func (h accountsHost) ForeignQueue(todevicemodule.DatabaseConfig) (storage.ForeignQueue, error) {
	return nil, nil
}
func (h accountsHost) IsLocalServer(serverName string) bool        { return serverName == "test" }
func (h accountsHost) Federates() bool                             { return true }
func (h accountsHost) WakeDevices(types.Position, []writer.Wakeup) {}
func (h accountsHost) UserDevices(_ context.Context, userID string) ([]string, error) {
	if userID == "@bob:test" {
		return []string{"PHONE"}, nil
	}
	return nil, nil
}

// rooms is a roomserver that is asked for the version of a PDU's room, and knows none. No server is banned from any.
type rooms struct {
	roomserver.RoomserverInternalAPI
	asked func(ctx context.Context, roomID string)
}

func (r *rooms) QueryRoomVersionForRoom(ctx context.Context, roomID string) (gomatrixserverlib.RoomVersion, error) {
	if r.asked != nil {
		r.asked(ctx, roomID)
	}
	return "", errors.New("no such room")
}

func (r *rooms) QueryServerBannedFromRoom(context.Context, *roomserver.QueryServerBannedFromRoomRequest, *roomserver.QueryServerBannedFromRoomResponse) error {
	return nil
}

// keys are those of the servers that tests send from.
type keys map[spec.ServerName]ed25519.PrivateKey

const keyID = gomatrixserverlib.KeyID("ed25519:test")

func (k keys) FetcherName() string { return "test" }
func (k keys) StoreKeys(context.Context, map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult) error {
	return nil
}

func (k keys) FetchKeys(_ context.Context, requests map[gomatrixserverlib.PublicKeyLookupRequest]spec.Timestamp) (map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult, error) {
	results := make(map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult)
	for request := range requests {
		if key, ok := k[request.ServerName]; ok && request.KeyID == keyID {
			results[request] = gomatrixserverlib.PublicKeyLookupResult{
				VerifyKey:    gomatrixserverlib.VerifyKey{Key: spec.Base64Bytes(key.Public().(ed25519.PublicKey))},
				ValidUntilTS: spec.AsTimestamp(time.Now().Add(time.Hour)),
			}
		}
	}
	return results, nil
}

// sendServer is the host's federation routes behind those of the module.
type sendServer struct {
	module *todevicemodule.Module
	store  storage.Store
	routes http.Handler
	keys   keys
	rooms  *rooms
	typing *nats.Subscription // what the host publishes for the rest of itself
	queue  *nats.Subscription // send-to-device messages that got past the module
}

func startSendServer(t *testing.T, change ...func(*todevicemodule.Config)) *sendServer {
	t.Helper()
	streams := t.TempDir()
	cfg, processContext, closeDatabases := testrig.CreateConfig(t, hosttest.DBTypeSQLite)
	t.Cleanup(func() {
		closeDatabases()
		processContext.WaitForComponentsToFinish()
	})
	cfg.Global.JetStream.StoragePath = config.Path(streams)
	cfg.Global.JetStream.NoLog = true
	cm := sqlutil.NewConnectionManager(processContext, cfg.Global.DatabaseOptions)
	natsInstance := &jetstream.NATSInstance{}
	federation := federationapi.NewInternalAPI(processContext, cfg, cm, natsInstance, nil, nil, nil, nil, true)

	s := &sendServer{store: testdb.SQLite(t)(t), rooms: &rooms{}, keys: make(keys)}
	for _, server := range []spec.ServerName{"there", "elsewhere"} {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		s.keys[server] = key
	}
	section := todevicemodule.DefaultConfig()
	section.Enabled = true
	for _, f := range change {
		f(&section)
	}
	var err error
	if s.module, err = todevicemodule.New(section, accountsHost{store: s.store}, nil, quietLog()); err != nil {
		t.Fatal(err)
	}
	if err = s.module.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &Dendrite{config: cfg, log: quietLog(), module: s.module}
	t.Cleanup(d.Stop)
	d.UseFederationAPI(federation, &fedrouting.FederationWakeups{FsAPI: federation})

	routers := httputil.NewRouters()
	monolith := &setup.Monolith{
		KeyRing: &gomatrixserverlib.KeyRing{KeyDatabase: s.keys}, RoomserverAPI: s.rooms, FederationAPI: federation,
	}
	d.addSendRoute(monolith, processContext, cfg, routers, natsInstance)
	federationapi.AddPublicRoutes(
		processContext, routers, cfg, natsInstance, nil, nil, monolith.KeyRing, s.rooms, federation, caching.DisableMetrics,
	)
	s.routes = routers.Federation

	_, nc := natsInstance.Prepare(processContext, &cfg.Global.JetStream)
	if s.typing, err = nc.SubscribeSync(cfg.Global.JetStream.Prefixed(jetstream.OutputTypingEvent)); err != nil {
		t.Fatal(err)
	}
	if s.queue, err = nc.SubscribeSync(cfg.Global.JetStream.Prefixed(jetstream.OutputSendToDeviceEvent)); err != nil {
		t.Fatal(err)
	}
	return s
}

// request is a signed transaction. The transaction ID stands in the path as it is.
func (s *sendServer) request(t *testing.T, origin spec.ServerName, txnID, content string) *http.Request {
	t.Helper()
	request := fclient.NewFederationRequest(http.MethodPut, origin, "test", "/_matrix/federation/v1/send/"+txnID)
	if err := request.SetContent(json.RawMessage(content)); err != nil {
		t.Fatal(err)
	}
	if err := request.Sign(origin, keyID, s.keys[origin]); err != nil {
		t.Fatal(err)
	}
	req, err := request.HTTPRequest()
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func (s *sendServer) serve(req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.routes.ServeHTTP(w, req)
	return w
}

func (s *sendServer) send(t *testing.T, origin spec.ServerName, txnID, content string) *httptest.ResponseRecorder {
	t.Helper()
	return s.serve(s.request(t, origin, txnID, content))
}

// stored returns the contents in the queue of bob's phone.
func (s *sendServer) stored(t *testing.T) string {
	t.Helper()
	messages, err := s.store.Messages(t.Context(), types.Device{UserID: "@bob:test", DeviceID: "PHONE"}, 0, 1<<62, 1000, nil)
	if err != nil {
		t.Error(err)
	}
	var all []string
	for _, m := range messages {
		all = append(all, string(m.Content))
	}
	return strings.Join(all, " ")
}

func toBob(id, content string) string {
	return toDeviceEDU(fmt.Sprintf(
		`{"sender":"@carol:there","type":"org.example.x","message_id":%q,"messages":{"@bob:test":{"PHONE":%s}}}`, id, content))
}

func transaction(parts ...string) string {
	return `{"origin":"there","origin_server_ts":1,"pdus":[{"room_id":"!r:there"}],"edus":[` + strings.Join(parts, ",") + `]}`
}

func wantAnswer(t *testing.T, w *httptest.ResponseRecorder, code int, body string) {
	t.Helper()
	if w.Code != code || !strings.Contains(w.Body.String(), body) {
		t.Errorf("the answer is %d %s, want %d with %s", w.Code, w.Body, code, body)
	}
}

// The messages are stored before the host begins with the PDUs, and the host gets everything but them.
func TestToDeviceEDUsAreStoredBeforeTheRest(t *testing.T) {
	s := startSendServer(t)
	var whenAsked []string
	s.rooms.asked = func(_ context.Context, roomID string) { whenAsked = append(whenAsked, roomID+" "+s.stored(t)) }
	content := transaction(toBob("1", `{"n":1}`), typingEDU, toBob("2", `{"n":2}`))
	wantAnswer(t, s.send(t, "there", "one", content), http.StatusOK, `{"pdus":{}}`)
	if len(whenAsked) != 1 || whenAsked[0] != `!r:there {"n":1} {"n":2}` {
		t.Errorf("when the host began with the PDUs, stored was %q", whenAsked)
	}
	if msg, err := s.typing.NextMsg(10 * time.Second); err != nil || msg.Header.Get(jetstream.RoomID) != "!r:there" {
		t.Errorf("the host did not get the typing EDU: %v", err)
	}
	if n, _, err := s.queue.Pending(); err != nil || n != 0 {
		t.Errorf("%d messages got to the host, %v", n, err)
	}
	// The same messages in other transactions, and one more.
	wantAnswer(t, s.send(t, "there", "one", content), http.StatusOK, `{"pdus":{}}`)
	wantAnswer(t, s.send(t, "there", "two", transaction(toBob("2", `{"n":2}`), toBob("3", `{"n":3}`))), http.StatusOK, `{"pdus":{}}`)
	if got := s.stored(t); got != `{"n":1} {"n":2} {"n":3}` {
		t.Errorf("stored is %s", got)
	}
}

func TestTransactionWithoutToDeviceEDUs(t *testing.T) {
	s := startSendServer(t)
	asked := 0
	s.rooms.asked = func(context.Context, string) { asked++ }
	wantAnswer(t, s.send(t, "there", "one", transaction(typingEDU)), http.StatusOK, `{"pdus":{}}`)
	if _, err := s.typing.NextMsg(10 * time.Second); err != nil || asked != 1 {
		t.Errorf("%d PDUs got to the host, and the typing EDU %v", asked, err)
	}
	wantAnswer(t, s.send(t, "there", "a%2Fb", `{}`), http.StatusOK, `{"pdus":{}}`)
	req := httptest.NewRequest(http.MethodGet, "/_matrix/federation/v1/version", nil)
	wantAnswer(t, s.serve(req), http.StatusOK, `"Dendrite"`)
	req = httptest.NewRequest(http.MethodGet, "/_matrix/federation/v1/send/one", nil)
	wantAnswer(t, s.serve(req), http.StatusMethodNotAllowed, `errcode`)
	req = httptest.NewRequest(http.MethodOptions, "/_matrix/federation/v1/send/one", nil)
	wantAnswer(t, s.serve(req), http.StatusOK, ``)
}

// What the host does not let in stores nothing.
func TestTransactionThatIsNotAuthentic(t *testing.T) {
	s := startSendServer(t)
	content := transaction(toBob("1", `{"n":1}`))
	signature := func(origin string, change func(string) string) *http.Request {
		req := s.request(t, spec.ServerName(origin), "one", content)
		req.Header.Set("Authorization", change(req.Header.Get("Authorization")))
		return req
	}
	none := s.request(t, "there", "one", content)
	none.Header.Del("Authorization")
	other := s.request(t, "there", "one", content)
	other.Body = io.NopCloser(strings.NewReader(strings.Replace(content, `"n":1`, `"n":2`, 1)))
	tests := map[string]struct {
		req  *http.Request
		code int
	}{
		"no signature":    {none, http.StatusUnauthorized},
		"another content": {other, http.StatusUnauthorized},
		"another's name":  {signature("elsewhere", func(h string) string { return strings.Replace(h, "elsewhere", "there", 1) }), http.StatusUnauthorized},
		"unknown key":     {signature("there", func(h string) string { return strings.Replace(h, "ed25519:test", "ed25519:other", 1) }), http.StatusUnauthorized},
		"for another server": {signature("there", func(h string) string {
			return strings.Replace(h, `destination="test"`, `destination="elsewhere"`, 1)
		}), http.StatusBadRequest},
	}
	for name, test := range tests {
		if w := s.serve(test.req); w.Code != test.code {
			t.Errorf("%s: the answer is %d %s, want %d", name, w.Code, w.Body, test.code)
		}
	}
	// An authentic transaction of one server can't bring the messages of another.
	wantAnswer(t, s.send(t, "elsewhere", "one", content), http.StatusOK, `{"pdus":{}}`)
	if got := s.stored(t); got != "" {
		t.Errorf("stored is %s", got)
	}
}

// A 5xx has the server send all of it again, so the host must not have begun with it.
func TestTransactionThatCantBeStored(t *testing.T) {
	s := startSendServer(t)
	s.rooms.asked = func(context.Context, string) { t.Error("the host got the PDU") }
	if err := s.module.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, s.send(t, "there", "one", transaction(toBob("1", `{}`), typingEDU)), http.StatusServiceUnavailable, `M_UNKNOWN`)
	if n, _, err := s.typing.Pending(); err != nil || n != 0 {
		t.Errorf("%d EDUs got to the host, %v", n, err)
	}
}

// A 429 has the server send all of it again later, so nothing of it may be done.
func TestServerThatSendsTooMuch(t *testing.T) {
	s := startSendServer(t, func(config *todevicemodule.Config) {
		config.Limits.OriginEDUsPerSecond, config.Limits.OriginEDUsBurst = 1, 100
	})
	s.rooms.asked = func(context.Context, string) { t.Error("the host got the PDU") }
	edus := make([]string, 100)
	for i := range edus {
		edus[i] = toBob(fmt.Sprint("first", i), `{}`)
	}
	wantAnswer(t, s.send(t, "there", "one", `{"edus":[`+strings.Join(edus, ",")+`]}`), http.StatusOK, `{"pdus":{}}`)
	before := s.stored(t)
	for i := range edus {
		edus[i] = toBob(fmt.Sprint("second", i), `{}`)
	}
	wantAnswer(t, s.send(t, "there", "two", transaction(append(edus[:99], typingEDU)...)), http.StatusTooManyRequests, `M_LIMIT_EXCEEDED`)
	if got := s.stored(t); got != before {
		t.Errorf("stored is %s", got)
	}
	if n, _, err := s.typing.Pending(); err != nil || n != 0 {
		t.Errorf("%d EDUs got to the host, %v", n, err)
	}
}

func TestTransactionThatIsTooLong(t *testing.T) {
	s := startSendServer(t)
	s.rooms.asked = func(context.Context, string) { t.Error("the host got the PDU") }
	edus := make([]string, 101)
	for i := range edus {
		edus[i] = toBob(fmt.Sprint(i), `{}`)
	}
	wantAnswer(t, s.send(t, "there", "one", transaction(edus...)), http.StatusBadRequest, `50 PDUs, 100 EDUs`)
	if got := s.stored(t); got != "" {
		t.Errorf("stored is %s", got)
	}
}

// countingBody counts what is read of it.
type countingBody struct {
	io.Reader
	read int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.read += int64(n)
	return n, err
}

func (b *countingBody) Close() error { return nil }

func TestTransactionThatIsTooLarge(t *testing.T) {
	s := startSendServer(t)
	body := &countingBody{Reader: bytes.NewReader(make([]byte, maxTransactionBytes+1<<20))}
	req := httptest.NewRequest(http.MethodPut, "/_matrix/federation/v1/send/one", body)
	req.ContentLength = maxTransactionBytes + 1
	w := s.serve(req)
	wantAnswer(t, w, http.StatusRequestEntityTooLarge, `M_TOO_LARGE`)
	if body.read != 0 || w.Header().Get("Connection") != "close" {
		t.Errorf("%d bytes were read, and the connection is kept: %v", body.read, w.Header())
	}
	req.ContentLength = -1
	wantAnswer(t, s.serve(req), http.StatusRequestEntityTooLarge, `M_TOO_LARGE`)
	if body.read > maxTransactionBytes+1 {
		t.Errorf("%d bytes were read", body.read)
	}
}

// The most that the specification allows, with what stands around it, is below the bound.
func TestLargestBodyIsReadWhole(t *testing.T) {
	if maxTransactionBytes < (50+100)*(64<<10+1024) {
		t.Errorf("a transaction may have %d bytes", maxTransactionBytes)
	}
	module := startSendServer(t).module
	for _, announced := range []int64{maxTransactionBytes, -1} {
		var read int
		var err error
		handler := withBoundedBody(module.HoldBody, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			var body []byte
			body, err = io.ReadAll(req.Body)
			read = len(body)
		}))
		req := httptest.NewRequest(http.MethodPut, "/", bytes.NewReader(make([]byte, maxTransactionBytes)))
		req.ContentLength = announced
		handler.ServeHTTP(httptest.NewRecorder(), req)
		if err != nil || read != maxTransactionBytes {
			t.Errorf("%d of %d bytes were read, %v", read, maxTransactionBytes, err)
		}
	}
}

// nestedTo returns JSON of so many bytes, in as many levels.
func nestedTo(levels, bytes int) string {
	return strings.Repeat("[", levels) + `"` + strings.Repeat("x", bytes-2*levels-2) + `"` + strings.Repeat("]", levels)
}

// What the host would sort for minutes before it looks at the signature does not get to it. The largest transaction does, in as
// many levels as are read and with the deepest messages.
func TestTransactionThatIsNestedTooDeep(t *testing.T) {
	s := startSendServer(t)
	reaches := func(body string) (reached bool, w *httptest.ResponseRecorder) {
		handler := withBoundedBody(s.module.HoldBody, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			read, err := io.ReadAll(req.Body)
			reached = err == nil && string(read) == body
		}))
		w = httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/", strings.NewReader(body)))
		return reached, w
	}
	list := func(n int, part string) string { return "[" + strings.Repeat(part+",", n-1) + part + "]" }
	const large = 64 << 10
	allowed := transaction(list(maxPDUs, nestedTo(9_990, large)), list(maxEDUs-1, nestedTo(105, large))+nestedTo(105, 16<<20))
	if ok, w := reaches(allowed); !ok {
		t.Errorf("what is allowed is answered %d %s", w.Code, w.Body)
	}
	refused := transaction(nestedTo(9_000, 5<<20))
	if ok, w := reaches(refused); ok || w.Code != http.StatusBadRequest {
		t.Errorf("what takes minutes reaches the host: %v, %d %s", ok, w.Code, w.Body)
	} else {
		wantAnswer(t, w, http.StatusBadRequest, `M_BAD_JSON`)
	}
	if ok, _ := reaches(transaction()); !ok {
		t.Error("nothing gets through any more")
	}
}

// A server whose transactions are all under way gets a 429, and other servers don't.
func TestTransactionsOfOneServerAtOnce(t *testing.T) {
	s := startSendServer(t)
	begun, release := make(chan struct{}, 100), make(chan struct{})
	s.rooms.asked = func(context.Context, string) {
		begun <- struct{}{}
		<-release
	}
	var group sync.WaitGroup
	send := func(origin spec.ServerName, txnID string, edus ...string) {
		req := s.request(t, origin, txnID, transaction(edus...))
		group.Go(func() { wantAnswer(t, s.serve(req), http.StatusOK, `{"pdus":{}}`) })
		<-begun
	}
	for i := range 10 {
		send("there", fmt.Sprint(i), toBob(fmt.Sprint(i), fmt.Sprintf(`{"n":%d}`, i)))
	}
	w := s.send(t, "there", "last", transaction(toBob("last", `{}`)))
	wantAnswer(t, w, http.StatusTooManyRequests, `"M_LIMIT_EXCEEDED"`)
	if !strings.Contains(w.Body.String(), `"retry_after_ms":5000`) {
		t.Errorf("the answer is %s", w.Body)
	}
	send("elsewhere", "one")
	// The PDUs that hang hold up no message: those of their own transactions are stored.
	if got := strings.Count(s.stored(t), `{"n":`); got != 10 {
		t.Errorf("%d messages are stored, want 10", got)
	}
	close(release)
	group.Wait()
	wantAnswer(t, s.send(t, "there", "last", transaction(toBob("last", `{"n":"last"}`))), http.StatusOK, `{"pdus":{}}`)
	if got := s.stored(t); !strings.HasSuffix(got, ` {"n":"last"}`) {
		t.Errorf("stored is %s", got)
	}
}

// The same transaction many times at once is answered as the host answers it once, and never with the 202
// that it has for those that wait.
func TestSameTransactionAtOnce(t *testing.T) {
	s := startSendServer(t)
	begun, release := make(chan struct{}, 100), make(chan struct{})
	s.rooms.asked = func(context.Context, string) {
		begun <- struct{}{}
		<-release
	}
	var group sync.WaitGroup
	for range 8 {
		req := s.request(t, "there", "same", transaction(toBob("1", `{"n":1}`)))
		group.Go(func() { wantAnswer(t, s.serve(req), http.StatusOK, `{"pdus":{}}`) })
	}
	<-begun
	close(release)
	group.Wait()
	if got := s.stored(t); got != `{"n":1}` {
		t.Errorf("stored is %s", got)
	}

	answers := []int{http.StatusAccepted, http.StatusAccepted, http.StatusBadRequest}
	route := &sendRoute{
		underWay: newUnderWay(1, maxTransactionBytes),
		next: func(_ *http.Request, _ *fclient.FederationRequest, id gomatrixserverlib.TransactionID) util.JSONResponse {
			if id != "a/b" {
				t.Errorf("the transaction is %q", id)
			}
			code := answers[0]
			answers = answers[1:]
			return util.JSONResponse{Code: code}
		},
	}
	request := requestOf(t, `{}`)
	if res := route.serve(httptest.NewRequest(http.MethodPut, "/", nil), request, map[string]string{"txnID": "a/b"}); res.Code != http.StatusBadRequest {
		t.Errorf("the answer is %d", res.Code)
	}
}

func TestUnderWayForgetsServersWithNothing(t *testing.T) {
	u := newUnderWay(2, 1<<20)
	begin := func(origin string, want bool) {
		if u.begin(origin, 1) != want {
			t.Fatalf("begun is %v, of %s one more", u.count, origin)
		}
	}
	begin("a", true)
	begin("a", true)
	begin("a", false)
	begin("b", true)
	u.end("a", 1)
	begin("a", true)
	begin("a", false)
	u.end("a", 1)
	u.end("a", 1)
	u.end("b", 1)
	if len(u.count) != 0 {
		t.Errorf("left is %v", u.count)
	}
}
