package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// FakeRemote is another homeserver, run by the test: it answers transactions as the test says, keeps
// what it was sent, and fails the test where that breaks the rules of federation. What it says it has
// processed it treats as a strict receiver does: a transaction ID that comes again is answered and
// ignored, and so is a message_id.
type FakeRemote struct {
	Name string // "localhost:port"

	address     string
	certificate tls.Certificate
	keyID       gomatrixserverlib.KeyID
	key         ed25519.PrivateKey
	client      fclient.FederationClient
	verifier    *knownKeys
	publish     func(*gomatrixserverlib.ServerKeyFields) // changes what is said of the key; set before anybody asks

	listening *http.Server // only for Open and Close, which the test calls

	mu       sync.Mutex
	behave   func(*Transaction) Reply
	script   []Reply
	alias    id.RoomID      // what every alias of the remote stands for
	silent   bool           // about the devices of its users
	asked    []string       // whose devices it was asked for
	inFlight map[string]int // by origin
	inbox
	rules
}

// NewFakeRemote starts a remote for a server that runs, and ends it with the test.
func NewFakeRemote(t testing.TB, servers ...*Server) *FakeRemote {
	t.Helper()
	address, err := FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	name, err := federationName(address)
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &FakeRemote{
		Name: name, address: address, keyID: "ed25519:fake", key: key,
		behave: func(*Transaction) Reply { return accept() }, inFlight: map[string]int{},
		inbox: newInbox(), rules: newRules(name),
	}
	certificate, certificateKey, err := newCertificate()
	if err == nil {
		r.certificate, err = tls.X509KeyPair(certificate, certificateKey)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.client = fclient.NewFederationClient([]*fclient.SigningIdentity{{
		ServerName: spec.ServerName(name), KeyID: r.keyID, PrivateKey: key,
	}}, fclient.WithSkipVerify(true), fclient.WithTimeout(deadline))
	r.verifier = &knownKeys{}
	for _, s := range servers {
		r.verifier.learn(t, r.client, s)
	}
	r.Open(t)
	t.Cleanup(func() {
		r.Close(t)
		r.report(t)
	})
	return r
}

// Open makes the remote reachable, under the address it had before.
func (r *FakeRemote) Open(t testing.TB) {
	t.Helper()
	var listener net.Listener
	eventually(t, "the address is free", func() (bool, any) {
		var err error
		listener, err = net.Listen("tcp", r.address)
		return err == nil, err
	})
	r.listening = &http.Server{
		Handler:   r.routes(),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{r.certificate}},
		ErrorLog:  log.New(io.Discard, "", 0), // connections that the server under test gives up
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, c)
		},
	}
	go func(server *http.Server) { _ = server.ServeTLS(listener, "", "") }(r.listening)
}

// Close makes the remote unreachable, and cuts its connections.
func (r *FakeRemote) Close(t testing.TB) {
	t.Helper()
	if err := r.listening.Close(); err != nil {
		t.Error(err)
	}
}

// connectionKey is where a request's context has its connection.
type connectionKey struct{}

// drop closes the connection of a request, as a crash would.
func drop(req *http.Request) {
	_ = req.Context().Value(connectionKey{}).(net.Conn).Close()
	panic(http.ErrAbortHandler)
}

// User returns the ID of a user of the remote.
func (r *FakeRemote) User(localpart string) id.UserID {
	return id.UserID("@" + localpart + ":" + r.Name)
}

// Device returns a device of the remote, to send to.
func (r *FakeRemote) Device(localpart string, device id.DeviceID) *Client {
	return &Client{Client: &mautrix.Client{UserID: r.User(localpart), DeviceID: device}}
}

// report fails the test for what broke a rule, and shows a failed test what the remote was sent.
func (r *FakeRemote) report(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, fault := range r.faults {
		if i == 10 {
			t.Errorf("%s: and %d faults more", r.Name, len(r.faults)-i)
			break
		}
		t.Errorf("%s: %s", r.Name, fault)
	}
	if t.Failed() {
		t.Logf("%s was sent:\n%s", r.Name, strings.Join(r.history, "\n"))
	}
}

// routes are the endpoints that a server under test asks for. What is not there is refused as a
// server does that does not know it.
func (r *FakeRemote) routes() http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, body func(*http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) { writeAnswer(w, http.StatusOK, body(req)) })
	}
	mux.HandleFunc("PUT /_matrix/federation/v1/send/{txnID}", r.receive)
	answer("GET /_matrix/key/v2/server", func(*http.Request) any { return r.publicKeys() })
	answer("GET /_matrix/key/v2/server/{keyID}", func(*http.Request) any { return r.publicKeys() })
	answer("GET /_matrix/federation/v1/version", func(*http.Request) any {
		return object{"server": object{"name": "fake", "version": "1"}}
	})
	answer("GET /_matrix/federation/v1/user/devices/{userID}", func(req *http.Request) any {
		r.mu.Lock()
		r.asked = append(r.asked, req.PathValue("userID"))
		silent := r.silent
		r.mu.Unlock()
		if silent {
			<-req.Context().Done()
		}
		return devicesOf(req.PathValue("userID"))
	})
	answer("POST /_matrix/federation/v1/user/keys/query", func(*http.Request) any { return object{"device_keys": object{}} })
	answer("GET /_matrix/federation/v1/query/directory", func(*http.Request) any {
		r.mu.Lock()
		defer r.mu.Unlock()
		return object{"room_id": r.alias, "servers": []string{r.Name}}
	})
	answer("GET /_matrix/federation/v1/query/profile", func(*http.Request) any { return object{} })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeAnswer(w, http.StatusNotFound, object{"errcode": "M_UNRECOGNIZED", "error": "unknown to this server"}) //nolint:misspell // as the specification has it
	})
	return mux
}

func writeAnswer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// publicKeys returns the signed document with the remote's key.
func (r *FakeRemote) publicKeys() json.RawMessage {
	fields := gomatrixserverlib.ServerKeyFields{
		ServerName:    spec.ServerName(r.Name),
		VerifyKeys:    map[gomatrixserverlib.KeyID]gomatrixserverlib.VerifyKey{r.keyID: {Key: spec.Base64Bytes(r.key.Public().(ed25519.PublicKey))}},
		ValidUntilTS:  spec.AsTimestamp(time.Now().Add(24 * time.Hour)),
		OldVerifyKeys: map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey{},
	}
	if r.publish != nil {
		r.publish(&fields)
	}
	signed, err := gomatrixserverlib.SignJSON(r.Name, r.keyID, r.key, mustJSON(fields))
	if err != nil {
		panic(err)
	}
	return signed
}

// Alias makes a room known under every alias of the remote.
func (r *FakeRemote) Alias(room id.RoomID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alias = room
}

// HideDevices leaves every question for the devices of a user without an answer.
func (r *FakeRemote) HideDevices() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent = true
}

// Asked returns the users whose devices were asked for.
func (r *FakeRemote) Asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

// devicesOf returns the one device, KNOWN, that every user of a remote has.
func devicesOf(userID string) object {
	const device, key = "KNOWN", "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs"
	keys := object{
		"user_id": userID, "device_id": device, "algorithms": []string{},
		"keys": object{"curve25519:" + device: key, "ed25519:" + device: key}, "signatures": object{},
	}
	return object{"user_id": userID, "stream_id": 1, "devices": []object{{"device_id": device, "keys": keys}}}
}
