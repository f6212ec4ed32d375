package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// A content arrives as the JSON that was sent, in an event that has nothing else but its sender
// and its type.
func TestContentArrivesAsSent(t *testing.T) {
	contents := []string{
		`{}`,
		`{"org.matrix.msgid":"abc","unknown":{"deep":[1,2,{"x":null,"y":[[],{}]}]},"":"empty key"}`,
		`{"a":9007199254740993,"b":-9223372036854775809,"c":123456789012345678901234567890,"d":-0}`,
		`{"a":1.0,"b":1e2,"c":1.50E-7,"d":0.1000}`,
		`{"z":1,"a":2,"m":{"y":1,"b":2},"A":3}`,
		`{"text":"héllo 😀 ä\u2028\u2029 \"\\\/\b\f\n\r\t","ключ":"值"}`,
		`{"nul":"a\u0000b","surrogate":"\ud83d\ude00","lone":"\ud800"}`,
		`{"html":"<script>&amp;'</script>","url":"https://example.org/?a=b&c=<d>"}`,
		`{ "space" : [ 1 , 2 ] , "b" : true }`,
		`{"sender":"@mallory:localhost","type":"m.other","content":{"content":{}},"message_id":"x"}`,
		nested(100),
	}
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		for _, content := range contents {
			body := fmt.Sprintf(`{"extra":1,"messages":{%q:{%q:%s}}}`, bob.UserID, bob.DeviceID, content)
			if a := alice.Put(t.Context(), "m.test", unique("txn"), []byte(body)); a.Status != http.StatusOK {
				t.Fatalf("%s: want 200, got %v", content, a)
			}
		}
		events, _ := bob.Receive(t, "", len(contents))
		for i, e := range events {
			wantSameJSON(t, e.Content, []byte(contents[i]))
			if e.Sender != alice.UserID.String() || e.Type != "m.test" || len(e.Keys) != 3 {
				t.Errorf("want sender, type and content alone, got %s", e.Keys)
			}
		}
	})
}

// nested returns an object with a number of levels.
func nested(levels int) string {
	return strings.Repeat(`{"n":`, levels) + "0" + strings.Repeat("}", levels)
}

// Each recipient of one request gets its own content.
func TestOwnContentForEachDevice(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice := Register(t, s, "alice")
		m := Messages{}
		var devices []*Client
		for range 5 {
			first := Register(t, s, "bob")
			for _, d := range []*Client{first, first.Login(t, s, "SECOND")} {
				devices = append(devices, d)
				if m[d.UserID] == nil {
					m[d.UserID] = map[id.DeviceID]any{}
				}
				m[d.UserID][d.DeviceID] = object{"n": len(devices)}
			}
		}
		alice.Send(t, "m.test", m)
		for i, d := range devices {
			events, _ := d.Receive(t, "", 1)
			wantNumbers(t, numbers(t, events), i+1, i+2)
		}
	})
}

// The three versions of the path are one route: a transaction ID is known on each of them.
func TestRoutes(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		once := unique("txn")
		for i, version := range []string{"r0", "v3", "unstable"} {
			for txn, n := range map[string]int{once: 100, unique("txn"): i} {
				a := alice.do(t.Context(), http.MethodPut, alice.PutURL(version, "m.test", txn), To(object{"n": n}, bob).Body())
				if a.Status != http.StatusOK {
					t.Fatalf("%s: want 200, got %v", version, a)
				}
			}
		}
		var got []int
		for _, n := range numbers(t, bob.Sync(t, Sync{}).Events()) {
			if n != 100 {
				got = append(got, n)
			}
		}
		wantNumbers(t, got, 0, 3)
		if n := len(bob.Sync(t, Sync{}).Events()); n != 4 {
			t.Errorf("want 4 messages, got %d: one transaction ID was taken for several", n)
		}
	})
}

// The event type and the transaction ID are percent-decoded, once.
func TestPercentEncodedPath(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		prefix := unique("txn")
		types := []string{"m.a/b", "m.a b", "m.a%2Fb", "m.a?b#c", "m.ключ", "m.a+b", "m.a;b=c", `m."<&>"`}
		for i, eventType := range types {
			alice.SendTxn(t, eventType, prefix, To(object{"n": i}, bob))
		}
		events, since := bob.Receive(t, "", len(types))
		for i, e := range events {
			if e.Type != types[i] {
				t.Errorf("want the type %q, got %q", types[i], e.Type)
			}
		}
		txns := []string{"/a/b", "/a%2Fb", "/a/../b", "/a+b", "/a b", "/a%20b", "/ä", "/%C3%A4", "/."}
		for range 2 {
			for i, txn := range txns {
				alice.SendTxn(t, "m.test", prefix+txn, To(object{"n": i}, bob))
			}
		}
		events, since = bob.Receive(t, since, len(txns))
		wantNumbers(t, numbers(t, events), 0, len(txns))
		// The same transaction ID, written in another way.
		target := s.URL + "/_matrix/client/v3/sendToDevice/m.test/" + strings.ReplaceAll(prefix, "_", "%5F") + "%2Fa%2fb"
		if a := rawPut(t, alice, target, To(object{"n": 0}, bob).Body()); a.Status != http.StatusOK {
			t.Errorf("want 200, got %v", a)
		}
		bob.Settle(t, since)
	})
}

// Guests verify and share keys too.
func TestGuests(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		guest, bob := RegisterGuest(t, s), Register(t, s, "bob")
		guest.Send(t, "m.test", To(object{"n": 0}, bob))
		wantOne(t, bob, "")
		bob.Send(t, "m.test", To(object{"n": 0}, guest))
		wantOne(t, guest, "")
	})
}

// mautrix sends and receives by itself: its own requests, transaction IDs, filter and /sync loop.
func TestMautrixSyncLoop(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		eventType := event.Type{Type: "org.example.e2e", Class: event.ToDeviceEventType}
		arrived := make(chan float64, 100)
		syncer := mautrix.NewDefaultSyncer()
		syncer.ParseEventContent = false
		syncer.OnEventType(eventType, func(_ context.Context, e *event.Event) {
			n, _ := e.Content.Raw["n"].(float64)
			if e.Sender != alice.UserID {
				n = -1
			}
			arrived <- n
		})
		bob.Syncer = syncer
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- bob.SyncWithContext(ctx) }()
		for n := range 20 {
			content := &event.Content{Raw: map[string]any{"n": n}}
			_, err := alice.SendToDevice(ctx, eventType, &mautrix.ReqSendToDevice{
				Messages: map[id.UserID]map[id.DeviceID]*event.Content{bob.UserID: {bob.DeviceID: content}},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for n := range 20 {
			select {
			case got := <-arrived:
				if int(got) != n {
					t.Fatalf("want message %d, got %v", n, got)
				}
			case err := <-done:
				t.Fatalf("the /sync loop ended: %v", err)
			}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the /sync loop ended with %v", err)
		}
		if len(arrived) > 0 {
			t.Errorf("%d messages more than were sent", len(arrived))
		}
	})
}
