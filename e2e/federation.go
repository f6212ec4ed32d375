package e2e

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// SharedPair returns two servers that reach one another, for all tests that keep apart by their users.
// As with SharedServer, a test may kill and restart them; a test that runs beside others may not use
// them.
func SharedPair(t testing.TB, b Backend) (here, there *Server) {
	t.Helper()
	return SharedFederated(t, b), sharedServer(t, sharedKey{b, "there"}, Options{Federation: true})
}

// SharedFederated returns the first server of SharedPair.
func SharedFederated(t testing.TB, b Backend) *Server {
	t.Helper()
	return sharedServer(t, sharedKey{b, "here"}, Options{Federation: true})
}

// StartPair starts two servers of the test's own that reach one another.
func StartPair(t testing.TB, b Backend, o, other Options) (here, there *Server) {
	t.Helper()
	o.Federation, other.Federation = true, true
	here, there = NewServer(t, b, o), NewServer(t, b, other)
	together(t, here.Start, there.Start)
	return here, there
}

// together does several things to servers at once.
func together(t testing.TB, actions ...func() error) {
	t.Helper()
	errs := make([]error, len(actions))
	var wait sync.WaitGroup
	for i, action := range actions {
		wait.Go(func() { errs[i] = action() })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// federate gives the server a name with a port of its own, or that of what stands in front of it, and a certificate.
func (s *Server) federate(behind string) error {
	address, err := FreeAddress()
	if err != nil {
		return err
	}
	s.federation = address
	if s.name, err = federationName(cmp.Or(behind, address)); err != nil {
		return err
	}
	s.tls = []string{"-https-bind-address", address, "-tls-cert", s.path("tls_cert.pem"), "-tls-key", s.path("tls_key.pem")}
	certificate, key, err := newCertificate()
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(s.path("tls_cert.pem"), certificate, 0o600),
		os.WriteFile(s.path("tls_key.pem"), key, 0o600),
	)
}

// federationName returns the server name under which others find a loopback address.
func federationName(address string) (string, error) {
	_, port, err := net.SplitHostPort(address)
	return "localhost:" + port, err
}

// newCertificate makes a certificate for localhost, and its key, in PEM.
func newCertificate() (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	if certificate, err = x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private); err != nil {
		return nil, nil, err
	}
	if key, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), nil
}
