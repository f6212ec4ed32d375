package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// maxAnswerBytes is more than any answer to a transaction has.
const maxAnswerBytes = 1 << 20

// OwnTransaction is a transaction that a Server sends.
type OwnTransaction struct {
	ID       string
	PDUs     []any
	EDUs     []any
	WrongKey bool // sign it with a key that nobody published
	Unsigned bool // leave the signature out
	// KeyID and For are signed in place of the Server's own and of the server that it is sent to.
	KeyID gomatrixserverlib.KeyID
	For   string
	// Header changes the Authorization header once it is signed.
	Header func(string) string
	// Body is sent in place of what is signed, without a word of its length.
	Body io.Reader
}

// Answer is what a server answered.
type Answer struct {
	Status int
	Body   []byte
}

// Send sends a transaction to a server, once, and returns its answer, whatever its status. It waits for that until the context ends.
func (s *Server) Send(ctx context.Context, serverName string, x OwnTransaction) (Answer, error) {
	body, err := json.Marshal(object{
		"origin": s.Name, "origin_server_ts": 1700000000000, "pdus": append([]any{}, x.PDUs...), "edus": append([]any{}, x.EDUs...),
	})
	if err != nil {
		return Answer{}, err
	}
	req, err := s.sign(serverName, body, x)
	if err != nil {
		return Answer{}, err
	}
	// The body as it is: signing has written it in a way of its own.
	req.Body, req.ContentLength, req.GetBody = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	if x.Body != nil {
		req.Body, req.ContentLength = io.NopCloser(x.Body), -1
	}
	req.URL.Scheme, req.URL.Host = "https", serverName
	res, err := (&http.Client{Transport: s.transport}).Do(req.WithContext(ctx))
	if err != nil {
		return Answer{}, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	return Answer{Status: res.StatusCode, Body: answer}, err
}

// sign returns the request of a transaction with the headers that its body and x ask for.
func (s *Server) sign(serverName string, body []byte, x OwnTransaction) (*http.Request, error) {
	key := s.key
	if x.WrongKey {
		var err error
		if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	here, there := spec.ServerName(s.Name), spec.ServerName(cmp.Or(x.For, serverName))
	request := fclient.NewFederationRequest(http.MethodPut, here, there, "/_matrix/federation/v1/send/"+x.ID)
	if err := request.SetContent(json.RawMessage(body)); err != nil {
		return nil, err
	}
	if err := request.Sign(here, cmp.Or(x.KeyID, s.keyID), key); err != nil {
		return nil, err
	}
	req, err := request.HTTPRequest()
	if err != nil {
		return nil, err
	}
	if x.Unsigned {
		req.Header.Del("Authorization")
	}
	if x.Header != nil {
		req.Header.Set("Authorization", x.Header(req.Header.Get("Authorization")))
	}
	return req, nil
}

// ToDevice returns an m.direct_to_device EDU of a user of the server, with messages by user ID and device ID. Tests that want a
// faulty one change it.
func (s *Server) ToDevice(messageID string, messages any) map[string]any {
	return object{"edu_type": spec.MDirectToDevice, "origin": s.Name, "content": object{
		"sender": s.User("mallory"), "type": "m.test", "message_id": messageID, "messages": messages,
	}}
}

// Join makes a user of the server a member of a room of another server, as a homeserver does.
func (s *Server) Join(ctx context.Context, serverName, roomID, userID string) error {
	here, there := spec.ServerName(s.Name), spec.ServerName(serverName)
	made, err := s.Client.MakeJoin(ctx, here, there, roomID, userID)
	if err != nil {
		return fmt.Errorf("asking %s for the event to join with: %w", serverName, err)
	}
	version, err := gomatrixserverlib.GetRoomVersion(made.RoomVersion)
	if err != nil {
		return err
	}
	event, err := version.NewEventBuilderFromProtoEvent(&made.JoinEvent).Build(time.Now(), here, s.keyID, s.key)
	if err != nil {
		return err
	}
	if _, err = s.Client.SendJoin(ctx, here, there, event); err != nil {
		return fmt.Errorf("joining a room of %s: %w", serverName, err)
	}
	return nil
}
