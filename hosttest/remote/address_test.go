package remote

import (
	"net"
	"testing"
)

// Another process that looks for an address, which opens the same sockets, is not given one of these while nobody listens there.
func TestAddressIsTakenWhileNobodyListens(t *testing.T) {
	given := make(map[string]bool)
	for range 50 {
		address, err := FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		if given[address] {
			t.Errorf("%s is given out twice", address)
		}
		given[address] = true
		if other, err := net.ListenPacket("udp", address); err == nil {
			_ = other.Close()
			t.Errorf("%s is free for another process", address)
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}
}
