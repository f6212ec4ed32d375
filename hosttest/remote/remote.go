// Package remote is another homeserver, for tests of federation. It serves its signing key and PUT /send over TLS at its own name, answers transactions
// as the test says, keeps what it was sent, and finds what breaks the rules of federation. What it says it has processed it treats
// as a strict receiver does: a transaction ID that comes again is answered and ignored, and so is a message_id.
package remote

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// requestTimeout is how long the server under test may take to answer a request. Only a fault reaches it.
const requestTimeout = 30 * time.Second

// Server is a homeserver of a test. Its methods are safe for concurrent use, but for Open and Close.
type Server struct {
	// Name is its server name, "localhost:PORT".
	Name string
	// Client sends requests that are signed by the server. It takes any certificate.
	Client fclient.FederationClient

	address     string
	certificate tls.Certificate
	keyID       gomatrixserverlib.KeyID
	key         ed25519.PrivateKey
	transport   *http.Transport // of what it sends as it is
	verifier    verifier

	listening *http.Server
	served    chan struct{} // closed when listening has ended

	mu       sync.Mutex
	publish  func(*gomatrixserverlib.ServerKeyFields)
	behave   func(*Transaction) Reply
	script   []Reply
	alias    string         // the room that every alias of the server stands for
	silent   bool           // about the devices of its users
	asked    []string       // whose devices it was asked for
	inFlight map[string]int // by origin
	inbox
	rules
}

// New starts a server. The caller closes it. It takes transactions of the servers that it knows: see Learn.
func New(ctx context.Context) (*Server, error) {
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	name, err := NameAt(address)
	if err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &Server{
		Name: name, address: address, keyID: "ed25519:remote", key: key,
		// The certificates are nobody's. A connection of its own for each request is not one that a server has closed at its stop.
		transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
		behave:    func(*Transaction) Reply { return Accept() },
		inFlight:  make(map[string]int), inbox: newInbox(), rules: newRules(name),
	}
	certificate, certificateKey, err := NewCertificate()
	if err != nil {
		return nil, err
	}
	if s.certificate, err = tls.X509KeyPair(certificate, certificateKey); err != nil {
		return nil, err
	}
	s.Client = fclient.NewFederationClient([]*fclient.SigningIdentity{{
		ServerName: spec.ServerName(name), KeyID: s.keyID, PrivateKey: key,
	}}, fclient.WithSkipVerify(true), fclient.WithTimeout(requestTimeout))
	return s, s.Open(ctx)
}

// Open makes the server reachable again after Close, at the address that it had before.
func (s *Server) Open(ctx context.Context) error {
	listener, err := listen(ctx, s.address)
	if err != nil {
		return fmt.Errorf("%s can't be opened: %w", s.Name, err)
	}
	server := &http.Server{
		Handler:   s.routes(),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.certificate}},
		ErrorLog:  log.New(io.Discard, "", 0), // connections that the server under test gives up
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, c)
		},
	}
	served := make(chan struct{})
	s.listening, s.served = server, served
	go func() {
		defer close(served)
		_ = server.ServeTLS(listener, "", "") // it ends with Close
	}()
	return nil
}

// Close makes the server unreachable, and cuts its connections.
func (s *Server) Close() error {
	err := s.listening.Close()
	<-s.served
	return err
}

// connectionKey is where a request's context has its connection.
type connectionKey struct{}

// drop closes the connection of a request, as a crash would.
func drop(req *http.Request) {
	if connection, ok := req.Context().Value(connectionKey{}).(net.Conn); ok {
		_ = connection.Close()
	}
	panic(http.ErrAbortHandler)
}

// User returns the ID of a user of the server.
func (s *Server) User(localpart string) string { return "@" + localpart + ":" + s.Name }

// Behave says how each transaction from now on is answered, in the place of what was said before. At first all are accepted.
// The function is called for one transaction at a time, and must not call the server's methods.
func (s *Server) Behave(behave func(*Transaction) Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behave = behave
}

// Script says how the next transactions are answered, before it goes on as Behave says.
func (s *Server) Script(replies ...Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, replies...)
}
