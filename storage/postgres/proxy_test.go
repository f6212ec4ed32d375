package postgres_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// proxy stands between the driver and the server, so that a test can lose connections as a
// network does: the client notices, the server does not.
type proxy struct {
	url string

	mutex   sync.Mutex
	clients []net.Conn
	servers []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.Host = listener.Addr().String()
	p := &proxy{url: u.String()}
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		p.mutex.Lock()
		defer p.mutex.Unlock()
		for _, server := range p.servers {
			_ = server.Close()
		}
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.join(client, server)
		}
	}()
	return p
}

func (p *proxy) join(client net.Conn, address string) {
	server, err := net.Dial("tcp", address)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.clients, p.servers = append(p.clients, client), append(p.servers, server)
	go func() { _, _ = io.Copy(server, client) }()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
}

// cut ends every connection on the client's side only.
func (p *proxy) cut() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, client := range p.clients {
		_ = client.Close()
	}
	p.clients = nil
}
