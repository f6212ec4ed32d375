package smallhost

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// grace is how long requests may take that are under way at a stop. Connections that were opened in vain take all of it.
const grace = time.Second

// server is one of the two that the host has, and the goroutine that it runs in.
type server struct {
	http.Server
	ended chan struct{}
}

// serve starts both APIs.
func (h *host) serve(clientRoutes http.Handler) (clientURL, federationURL string, err error) {
	clients, err := h.listen("127.0.0.1:0", nil, clientRoutes)
	if err != nil {
		return "", "", err
	}
	certificate, err := selfSigned()
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

// stop lets the requests under way end, and cuts off those that take long.
func (s *server) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if s.Shutdown(ctx) != nil {
		_ = s.Close()
	}
	<-s.ended
}

func selfSigned() (tls.Certificate, error) {
	certificate, key, err := remote.NewCertificate()
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certificate, key)
}
