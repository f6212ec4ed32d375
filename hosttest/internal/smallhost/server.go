package smallhost

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/matrix-org/util"
)

// server is one of the two that the host has, and the goroutine that it runs in.
type server struct {
	http.Server
	ended chan struct{}
}

// serve starts both APIs.
func (h *host) serve(fault Fault) (clientURL, federationURL string, err error) {
	clients, err := h.listen("127.0.0.1:0", nil, fault.ofRoutes(h, h.clientRoutes()))
	if err != nil {
		return "", "", err
	}
	certificate, err := newCertificate()
	if err != nil {
		return "", "", err
	}
	name := string(h.name)
	_, err = h.listen(name, &tls.Config{Certificates: []tls.Certificate{certificate}}, h.federationRoutes())
	return "http://" + clients, "https://" + name, err
}

// listen serves on an address, with TLS if it is given a configuration of it, and returns the address that it has.
func (h *host) listen(address string, config *tls.Config, routes http.Handler) (string, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	address = listener.Addr().String()
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	s := &server{ended: make(chan struct{})}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		routes.ServeHTTP(w, req.WithContext(util.ContextWithLogger(req.Context(), h.log)))
	})
	s.ErrorLog = log.New(h.logFile, "", 0)
	h.servers = append(h.servers, s)
	go func() {
		defer close(s.ended)
		_ = s.Serve(listener) // ends with stop
	}()
	return address, nil
}

// stop lets the requests under way end, until ctx does.
func (s *server) stop(ctx context.Context) error {
	err := errors.Join(s.Shutdown(ctx), s.Close())
	<-s.ended
	return err
}

// newCertificate makes a certificate for localhost that nobody has signed.
func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{certificate}, PrivateKey: key}, err
}
