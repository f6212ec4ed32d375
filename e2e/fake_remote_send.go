package e2e

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"maunium.net/go/mautrix/id"
)

// federationTransport is used by what a remote sends. The certificates are nobody's.
var federationTransport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}

// OwnTransaction is a transaction that the remote sends.
type OwnTransaction struct {
	ID       string
	PDUs     []any
	EDUs     []any
	WrongKey bool // sign it with a key that nobody published
	Unsigned bool // leave the signature out
	// KeyID and For are signed in place of the remote's own and of the server that it is sent to.
	KeyID gomatrixserverlib.KeyID
	For   string
	// Header changes the Authorization header once it is signed.
	Header func(string) string
}

// Send sends a transaction to a server, once, and returns its answer.
func (r *FakeRemote) Send(t testing.TB, s *Server, x OwnTransaction) Answer {
	t.Helper()
	if x.PDUs == nil {
		x.PDUs = []any{}
	}
	if x.EDUs == nil {
		x.EDUs = []any{}
	}
	body := object{"origin": r.Name, "origin_server_ts": 1700000000000, "pdus": x.PDUs, "edus": x.EDUs}
	key := r.key
	if x.WrongKey {
		var err error
		if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	signedFor := spec.ServerName(cmp.Or(x.For, s.name))
	signed := fclient.NewFederationRequest(http.MethodPut, spec.ServerName(r.Name), signedFor, "/_matrix/federation/v1/send/"+x.ID)
	if err := signed.SetContent(body); err != nil {
		t.Fatal(err)
	}
	if err := signed.Sign(spec.ServerName(r.Name), cmp.Or(x.KeyID, r.keyID), key); err != nil {
		t.Fatal(err)
	}
	req, err := signed.HTTPRequest()
	if err != nil {
		t.Fatal(err)
	}
	// The body as it is: signing has written it in a way of its own.
	sent := mustJSON(body)
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(sent)), int64(len(sent))
	req.GetBody = nil
	req.URL.Scheme, req.URL.Host = "https", s.name
	if x.Unsigned {
		req.Header.Del("Authorization")
	}
	if x.Header != nil {
		req.Header.Set("Authorization", x.Header(req.Header.Get("Authorization")))
	}
	res, err := (&http.Client{Transport: federationTransport, Timeout: deadline}).Do(req.WithContext(t.Context()))
	if err != nil {
		return Answer{Err: err}
	}
	defer res.Body.Close() //nolint:errcheck
	return readAnswer(t, res)
}

// MustSend sends EDUs in a transaction, and fails the test unless the server answers 200.
func (r *FakeRemote) MustSend(t testing.TB, s *Server, txnID string, edus ...any) {
	t.Helper()
	if a := r.Send(t, s, OwnTransaction{ID: txnID, EDUs: edus}); a.Status != http.StatusOK {
		t.Fatalf("transaction %s: want 200, got %v", txnID, a)
	}
}

// ToDevice returns an EDU of a user of the remote. Tests that want a faulty one change it.
func (r *FakeRemote) ToDevice(messageID string, messages Messages) object {
	return object{"edu_type": directToDevice, "origin": r.Name, "content": object{
		"sender": r.User("mallory"), "type": "m.test", "message_id": messageID, "messages": messages,
	}}
}

// Join makes a user of the remote a member of a room of a server, as a homeserver does.
func (r *FakeRemote) Join(t testing.TB, s *Server, room id.RoomID, user id.UserID) {
	t.Helper()
	here, there := spec.ServerName(r.Name), spec.ServerName(s.name)
	made, err := r.client.MakeJoin(t.Context(), here, there, room.String(), user.String())
	if err != nil {
		t.Fatal(err)
	}
	version, err := gomatrixserverlib.GetRoomVersion(made.RoomVersion)
	if err != nil {
		t.Fatal(err)
	}
	event, err := version.NewEventBuilderFromProtoEvent(&made.JoinEvent).Build(time.Now(), here, r.keyID, r.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = r.client.SendJoin(t.Context(), here, there, event); err != nil {
		t.Fatal(err)
	}
}

// textOf returns the body of a room message, or nothing if the PDU is none.
func textOf(pdu json.RawMessage) string {
	var event struct {
		Type    string
		Content struct{ Body string }
	}
	if err := json.Unmarshal(pdu, &event); err != nil || event.Type != "m.room.message" {
		return ""
	}
	return event.Content.Body
}
