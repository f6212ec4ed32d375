package e2e

import (
	"math/rand/v2"
	"testing"

	"maunium.net/go/mautrix/id"
)

// Two servers whose users send to one another, and to their own, while one or the other is killed or
// stopped: nothing is lost, doubled or out of order.
func TestServersDisturbedUnderLoad(t *testing.T) {
	const disturbances = 6
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedPair(t, b)
		load := NewLoadBetween(t, map[*Server]Devices{here: {Senders: 3, Receivers: 2}, there: {Senders: 3, Receivers: 2}})
		figures := load.Run(t, func() {
			for i := range disturbances {
				load.Progress(t, 300)
				s := []*Server{here, there}[rand.IntN(2)]
				if i%3 == 2 {
					if err := s.Stop(); err != nil {
						t.Error(err)
					}
					s.MustStart(t)
				} else {
					s.Restart(t)
				}
			}
			load.Progress(t, 300)
		})
		t.Log(figures)
		if !figures.Good() {
			t.Errorf("after %d disturbances: %s", disturbances, figures)
		}
		if figures.Retried == 0 {
			t.Error("no request was repeated: the kills met no load")
		}
		wantOutboxEmpty(t, here, there)
		wantOutboxEmpty(t, there, here)
	})
}

// One request to devices of both servers, and to all devices of a user there, reaches each once; its
// repetition nobody.
func TestMixedRequest(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedPair(t, b)
		alice, local := Register(t, here, "alice"), Register(t, here, "local")
		bob, carol := Register(t, there, "bob"), Register(t, there, "carol")
		second := carol.Login(t, there, "SECOND")
		mixed := func(n int) Messages {
			m := To(object{"n": n}, local, bob)
			m[carol.UserID] = map[id.DeviceID]any{"*": object{"n": n}}
			return m
		}
		txn := unique("txn")
		alice.SendTxn(t, "m.test", txn, mixed(0))
		alice.SendTxn(t, "m.test", txn, mixed(0))
		here.Restart(t)
		alice.SendTxn(t, "m.test", txn, mixed(0))
		alice.Send(t, "m.test", mixed(1)) // behind which nothing of the first can come
		for _, c := range []*Client{local, bob, carol, second} {
			events, since := c.Receive(t, "", 2)
			wantNumbers(t, numbers(t, events), 0, 2)
			if events[0].Sender != alice.UserID.String() {
				t.Errorf("the sender is %s", events[0].Sender)
			}
			c.Settle(t, since)
		}
		wantOutboxEmpty(t, here, there)
	})
}

// "*" is for the other server to expand: it alone knows the devices. The remote users of one request go in
// one EDU, and the repetition of the request in none.
func TestMixedRequestOnTheWire(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote, other := NewFakeRemote(t, here), NewFakeRemote(t, here)
		alice := Register(t, here, "alice")
		messages := Messages{
			remote.User("bob"):   {"*": object{"n": 0}},
			remote.User("carol"): {"FIRST": object{"n": 0}, "SECOND": object{"n": 1}},
			other.User("dave"):   {"*": object{"n": 0}},
		}
		txn := unique("txn")
		for range 3 {
			alice.SendTxn(t, "m.test", txn, messages)
		}
		alice.Send(t, "m.last", To(object{"n": 2}, remote.Device("bob", "FIRST"), other.Device("dave", "FIRST")))
		for r, want := range map[*FakeRemote]Messages{
			remote: {
				remote.User("bob"):   {"*": object{"n": 0}, "FIRST": object{"n": 2}},
				remote.User("carol"): messages[remote.User("carol")],
			},
			other: {other.User("dave"): {"*": object{"n": 0}, "FIRST": object{"n": 2}}},
		} {
			n := 0
			for _, devices := range want {
				n += len(devices)
			}
			got := r.Receive(t, n, deadline)
			wantAllOnce(t, got, want)
			if got[0].Sender != alice.UserID.String() || got[0].Type != "m.test" || got[n-1].Type != "m.last" {
				t.Errorf("want m.test and then m.last of %s, got %+v", alice.UserID, got)
			}
			if edus := toDeviceEDUs(r); edus != 2 {
				t.Errorf("want one EDU for each request, got %d for two", edus)
			}
			wantNothingKept(t, here, r.Name)
		}
	})
}

// A server that can't be found is no reason to refuse a request, nor to hold anyone up.
func TestUnreachableServers(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedPair(t, b)
		alice, local, bob := Register(t, here, "alice"), Register(t, here, "local"), Register(t, there, "bob")
		for n := range 5 {
			m := To(object{"n": n}, local, bob)
			for _, user := range []id.UserID{"@someone:localhost:1", "@someone:nowhere.invalid", "@someone:127.0.0.1:2"} {
				m[user] = map[id.DeviceID]any{"*": object{"n": n}}
			}
			alice.Send(t, "m.test", m)
		}
		for _, c := range []*Client{local, bob} {
			events, since := c.Receive(t, "", 5)
			wantNumbers(t, numbers(t, events), 0, 5)
			c.Settle(t, since)
		}
	})
}
