package postgres_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between the driver and the server, so that a test can lose connections as a
// network does: the client notices, the server does not.
type proxy struct {
	url      string
	answered atomic.Int64 // requests

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
	go func() { _, _ = io.Copy(server, io.TeeReader(client, &requests{count: &p.answered})) }()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
}

// roundTrips returns for how many requests the clients have waited for the server.
func (p *proxy) roundTrips() int64 { return p.answered.Load() }

// requests counts those messages from a client after which it waits for the server.
type requests struct {
	count   *atomic.Int64
	started bool   // the first message has no type
	left    []byte // the beginning of a message
}

func (r *requests) Write(b []byte) (int, error) {
	r.left = append(r.left, b...)
	for {
		head := 1
		if !r.started {
			head = 0
		}
		if len(r.left) < head+4 {
			return len(b), nil
		}
		end := head + int(binary.BigEndian.Uint32(r.left[head:]))
		if len(r.left) < end {
			return len(b), nil
		}
		// Query, Sync, and the end of a COPY.
		if r.started && bytes.IndexByte([]byte("QSc"), r.left[0]) >= 0 {
			r.count.Add(1)
		}
		r.started, r.left = true, r.left[end:]
	}
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
