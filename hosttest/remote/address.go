package remote

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"time"
)

// takenAddresses has a UDP socket at each address that was given out, which nobody sends to: other processes see by it that the address is taken.
var takenAddresses sync.Map

// FreeAddress returns a loopback address below the range outgoing connections take their ports
// from. Within that range a client that retries while the server is down can be given the
// server's own port, and then talks to itself.
//
// No address is given out twice, nor to another process while this one lives: a server that is down is still known by its own.
func FreeAddress() (string, error) {
	for range 200 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.IntN(12000))
		taken, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		takenAddresses.Store(address, taken)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		return address, l.Close()
	}
	return "", errors.New("no free port between 20000 and 32000")
}

// NameAt returns the server name under which others find a loopback address.
func NameAt(address string) (string, error) {
	_, port, err := net.SplitHostPort(address)
	return "localhost:" + port, err
}

// listen waits until the address is free: connections may take a moment to end.
func listen(ctx context.Context, address string) (net.Listener, error) {
	for {
		listener, err := net.Listen("tcp", address)
		if err == nil {
			return listener, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// NewCertificate makes a certificate for localhost, and its key, in PEM.
func NewCertificate() (certificate, key []byte, err error) {
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
