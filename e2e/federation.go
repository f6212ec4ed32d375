package e2e

import (
	"cmp"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
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
	address, err := remote.FreeAddress()
	if err != nil {
		return err
	}
	s.federation = address
	if s.name, err = remote.NameAt(cmp.Or(behind, address)); err != nil {
		return err
	}
	s.tls = []string{"-https-bind-address", address, "-tls-cert", s.path("tls_cert.pem"), "-tls-key", s.path("tls_key.pem")}
	certificate, key, err := remote.NewCertificate()
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(s.path("tls_cert.pem"), certificate, 0o600),
		os.WriteFile(s.path("tls_key.pem"), key, 0o600),
	)
}
