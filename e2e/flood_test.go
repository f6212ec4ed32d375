package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	// floodBody is the size of a body of a flood: a little less than the default of max_request_bytes.
	floodBody = 9_600_000
	// largestFlood is how much more memory, in KiB, a flood of them may take than a server takes without. The bodies themselves have
	// room for 48 MiB at once. largestFederationFlood is the same of other servers' transactions, which have room for 12 MiB.
	largestFlood, largestFederationFlood = 768 << 10, 400 << 10
)

// mostGrowth is how much more memory a server may take in KiB: the race detector takes some five to ten times what the program does.
func mostGrowth(kib int) int {
	if os.Getenv(envRace) == "1" {
		return 10 * kib
	}
	return kib
}

// meanwhile has messages sent to a device, one after the other, each after the one before has arrived, until done is closed, and at least
// one. It returns how many those were, and how long the slowest took.
func meanwhile(t *testing.T, to *Client, since string, done <-chan struct{}, send func(n int)) (n int, slowest time.Duration) {
	t.Helper()
	for ; ; n++ {
		began := time.Now()
		send(n)
		var events []Event
		events, since = to.Receive(t, since, 1)
		wantNumbers(t, numbers(t, events), n, n+1)
		slowest = max(slowest, time.Since(began))
		select {
		case <-done:
			return n + 1, slowest
		default:
		}
	}
}

// closedAfter returns a channel that is closed once all of a group have ended.
func closedAfter(group *sync.WaitGroup) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	return done
}

// wantBounded fails the test if a server has taken more memory, in KiB, than it had before and a bound. It returns how much more it took.
func wantBounded(t *testing.T, s *Server, before, bound int) (grown int) {
	t.Helper()
	now := memoryPeak(s.PID())
	if before == 0 || now == 0 {
		t.Fatal("nothing tells how much memory the server takes: this test needs /proc")
	}
	grown = now - before
	if grown > mostGrowth(bound) {
		t.Errorf("the server took %d KiB more than the %d KiB before, at most %d are allowed", grown, before, mostGrowth(bound))
	}
	return grown
}

// floodMessages returns as many messages of the largest size as have about floodBody bytes, for devices that the user does not have.
func floodMessages(user id.UserID) []byte {
	const each = 60_000
	devices := map[id.DeviceID]any{}
	for len(devices) < floodBody/each {
		devices[id.DeviceID(fmt.Sprintf("NOBODY%d", len(devices)))] = object{"a": strings.Repeat("x", each-20)}
	}
	return Messages{user: devices}.Body()
}

// Forty clients that send as much as they may, all the time: the server's memory stays within its bound, whatever finds no room is told to
// come again, and others' messages go on.
func TestFloodOfLargeRequests(t *testing.T) {
	onEach(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{ToDevice: object{"max_request_bytes": 10 << 20}})
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		alice.Send(t, "m.test", To(object{"n": -1}, carol))
		events, since := carol.Receive(t, "", 1)
		wantNumbers(t, numbers(t, events), -1, 0)
		empty := memoryPeak(s.PID())

		const enough = 80
		body, done := floodMessages(bob.UserID), make(chan struct{})
		var stored, refused atomic.Int32
		var group sync.WaitGroup
		for range 40 {
			group.Go(func() {
				for stored.Load() < enough {
					switch a := rawPut(t, alice, alice.PutURL("v3", "m.test", unique("txn")), body); {
					case a.Status == http.StatusOK:
						if stored.Add(1) == enough {
							close(done)
						}
					case a.Status == http.StatusServiceUnavailable, a.Err != nil: // it may be cut off while it still sends
						refused.Add(1)
					default:
						t.Errorf("want 200 or 503, got %v", a)
						return
					}
				}
			})
		}
		n, slowest := meanwhile(t, carol, since, done, func(n int) { carol.Send(t, "m.test", To(object{"n": n}, carol)) })
		group.Wait()
		grown := wantBounded(t, s, empty, largestFlood)
		t.Logf("%d large requests were taken, %d not, with %d MiB more memory than %d MiB; meanwhile %d messages, the slowest in %s",
			stored.Load(), refused.Load(), grown>>10, empty>>10, n, slowest.Round(time.Millisecond))
	})
}

// holdBody sends the head of a request and a part of its body, and then nothing more until it is answered. The answer, if one comes, goes
// to answers.
func holdBody(t *testing.T, c *Client, announced, part int, answers chan<- Answer) {
	t.Helper()
	target, err := url.Parse(c.PutURL("v3", "m.test", unique("txn")))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", target.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		target.RequestURI(), target.Host, c.AccessToken, announced)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = conn.Write([]byte(`{"messages":{` + strings.Repeat(" ", part))) }() // what has no room is not read
	go func() {
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return // the test is over
		}
		answers <- readAnswer(t, res)
		_ = res.Body.Close()
	}()
}

// Whoever announces much and sends a part of it holds up nobody, be the part small or large, and gets 503 once others want the room.
func TestSlowSendersHoldUpNobody(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{ToDevice: object{"max_request_bytes": 10 << 20, "limits": object{"body_bytes": 16 << 20}}})
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		empty := memoryPeak(s.PID())
		answers := make(chan Answer, 1000)
		for range 300 {
			holdBody(t, alice, 10<<20, 0, answers)
			holdBody(t, alice, 10<<20, 60_000, answers)
		}
		for range 10 {
			holdBody(t, alice, 10<<20, 4<<20, answers)
		}
		since, body := "", floodMessages(bob.UserID)
		for n := range 20 {
			carol.Send(t, "m.test", To(object{"n": n}, carol))
			var events []Event
			events, since = carol.Receive(t, since, 1)
			wantNumbers(t, numbers(t, events), n, n+1)
		}
		eventually(t, "a large request is taken", func() (bool, any) {
			a := rawPut(t, carol, carol.PutURL("v3", "m.test", unique("txn")), body)
			if a.Status != http.StatusOK && a.Status != http.StatusServiceUnavailable && a.Err == nil {
				t.Fatalf("want 200 or 503, got %v", a)
			}
			return a.Status == http.StatusOK, a
		})
		select {
		case a := <-answers:
			if a.Status != http.StatusServiceUnavailable || a.ErrCode != "M_UNKNOWN" {
				t.Errorf("who had to make room: want 503 M_UNKNOWN, got %v", a)
			}
		case <-time.After(deadline):
			t.Error("nobody had to make room")
		}
		t.Logf("620 slow requests took %d MiB more memory", wantBounded(t, s, empty, 256<<10)>>10)
	})
}

// A client that sends requests as fast as it can, each its own transaction, delays others by a commit or two, and none of its own
// requests is lost.
func TestFloodOfTransactions(t *testing.T) {
	const senders, each = 64, 200
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		empty := memoryPeak(s.PID())
		var group sync.WaitGroup
		began := time.Now()
		for range senders {
			group.Go(func() {
				for range each {
					if a := alice.Put(t.Context(), "m.test", unique("txn"), To(object{"a": 1}, bob).Body()); a.Status != http.StatusOK {
						t.Errorf("want 200, got %v", a)
						return
					}
				}
			})
		}
		n, slowest := meanwhile(t, carol, "", closedAfter(&group), func(n int) { carol.Send(t, "m.test", To(object{"n": n}, carol)) })
		grown := wantBounded(t, s, empty, 96<<10)
		t.Logf("%d requests, %.0f a second, with %d MiB more memory; meanwhile %d messages, the slowest in %s",
			senders*each, senders*each/time.Since(began).Seconds(), grown>>10, n, slowest.Round(time.Millisecond))
		if got := queued(t, s.OpenDatabase(t), bob); got != senders*each {
			t.Errorf("%d messages wait, want %d", got, senders*each)
		}
	})
}

// Another server that sends full transactions without a pause, several at a time, is told to wait, and holds up nobody.
func TestFloodOfTransactionsOfAnotherServer(t *testing.T) {
	const connections, each = 12, 2
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true, ToDevice: object{"limits": object{"body_bytes": 16 << 20}}})
		remote, other := NewFakeRemote(t, here), NewFakeRemote(t, here)
		bob, carol := Register(t, here, "bob"), Register(t, here, "carol")
		remote.MustSend(t, here, "first", remote.ToDevice("first", To(object{"n": -1}, carol)))
		events, since := carol.Receive(t, "", 1)
		wantNumbers(t, numbers(t, events), -1, 0)
		empty := memoryPeak(here.PID())

		var edus []any
		for n := range maxEDUs {
			edus = append(edus, remote.ToDevice(unique("edu"), To(object{"n": n, "a": strings.Repeat("x", maxEDUBytes-1024)}, bob)))
		}
		var taken, refused atomic.Int32
		var group sync.WaitGroup
		for range connections {
			group.Go(func() {
				for range each {
					switch a := remote.Send(t, here, OwnTransaction{ID: unique("txn"), EDUs: edus}); {
					case a.Status == http.StatusOK:
						taken.Add(1)
					case a.Status == http.StatusTooManyRequests, a.Status == http.StatusServiceUnavailable, a.Err != nil:
						refused.Add(1)
					default:
						t.Errorf("want 200, 429 or 503, got %v", a)
					}
				}
			})
		}
		n, slowest := meanwhile(t, carol, since, closedAfter(&group), func(n int) {
			other.MustSend(t, here, unique("txn"), other.ToDevice(unique("edu"), To(object{"n": n}, carol)))
		})
		grown := wantBounded(t, here, empty, largestFederationFlood)
		t.Logf("%d transactions were taken, %d not, with %d MiB more memory; meanwhile %d of another server, the slowest in %s",
			taken.Load(), refused.Load(), grown>>10, n, slowest.Round(time.Millisecond))
		if taken.Load() == 0 {
			t.Error("none was taken")
		}
	})
}
