package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// An EDU that comes again is known by its message_id: in the same transaction, in another one, and after a
// kill; also when its messages were read and deleted in between.
func TestInboundOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		since := bob.Settle(t, "")
		edu := func(n int) object { return remote.ToDevice(fmt.Sprint("id", n), To(object{"n": n}, bob)) }
		remote.MustSend(t, here, "1", edu(0), edu(0), edu(1))
		remote.MustSend(t, here, "1", edu(0), edu(0), edu(1))
		here.Restart(t)
		remote.MustSend(t, here, "1", edu(0), edu(0), edu(1))
		remote.MustSend(t, here, "2", edu(1), edu(0), edu(2))
		// The same transaction ID with something new in it, as a restarted server without memory sends.
		remote.MustSend(t, here, "2", edu(3))
		events, since := bob.Receive(t, since, 4)
		wantNumbers(t, numbers(t, events), 0, 4)
		since = bob.Settle(t, since)
		here.Restart(t)
		remote.MustSend(t, here, "3", edu(0), edu(1), edu(2), edu(3), edu(4))
		events, since = bob.Receive(t, since, 1)
		wantNumbers(t, numbers(t, events), 4, 5)

		// Another server's message_id is another one.
		other := NewFakeRemote(t, here)
		other.MustSend(t, here, "1", other.ToDevice("id0", To(object{"n": 5}, bob)))
		events, since = bob.Receive(t, since, 1)
		wantNumbers(t, numbers(t, events), 5, 6)
		bob.Settle(t, since)
	})
}

// One transaction sent twenty times at once is applied once. The server may ask for some of them to be
// sent again.
func TestInboundConcurrently(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		var edus []any
		for n := range 20 {
			edus = append(edus, remote.ToDevice(fmt.Sprint("id", n), To(object{"n": n}, bob)))
		}
		var sends []func() error
		for i := range 20 {
			sends = append(sends, func() error {
				txnID := "same"
				if i%2 == 0 { // half of them as other transactions
					txnID = fmt.Sprint(i)
				}
				var a Answer
				for end := time.Now().Add(deadline); time.Now().Before(end); {
					if a = remote.Send(t, here, OwnTransaction{ID: txnID, EDUs: edus}); a.Status != http.StatusTooManyRequests {
						break
					}
				}
				if a.Status != http.StatusOK {
					return fmt.Errorf("want 200, got %v", a)
				}
				return nil
			})
		}
		together(t, sends...)
		events, since := bob.Receive(t, "", 20)
		wantNumbers(t, numbers(t, events), 0, 20)
		bob.Settle(t, since)
	})
}

// What can't be stored is not answered with 200: the remote would not send it again. When it does, it
// arrives once.
func TestInboundStorageBlocked(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, withTimeout(Options{Federation: true}))
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		remote.MustSend(t, here, "0", remote.ToDevice("id0", To(object{"n": 0}, bob))) // the key is known now
		lock, unlock := hold(t, here, map[Backend]string{
			Postgres: "BEGIN; LOCK TABLE todevice_position IN ACCESS EXCLUSIVE MODE", SQLite: "BEGIN IMMEDIATE",
		}[b])
		lock()
		blocked := OwnTransaction{ID: "1", EDUs: []any{remote.ToDevice("id1", To(object{"n": 1}, bob)), remote.ToDevice("id2", To(object{"n": 2}, bob))}}
		for range 2 {
			if a := remote.Send(t, here, blocked); a.Status/100 != 5 {
				t.Errorf("want 5xx, got %v", a)
			}
		}
		unlock()
		eventually(t, "the transaction is accepted", func() (bool, any) {
			a := remote.Send(t, here, blocked)
			return a.Status == http.StatusOK, a
		})
		remote.MustSend(t, here, "1", blocked.EDUs...)
		remote.MustSend(t, here, "2", append(blocked.EDUs, remote.ToDevice("id3", To(object{"n": 3}, bob)))...)
		events, since := bob.Receive(t, "", 4)
		wantNumbers(t, numbers(t, events), 0, 4)
		bob.Settle(t, since)
	})
}

// EDUs that nothing can be done with are passed over, and those beside them arrive, in order. They must
// not make the transaction fail either: the remote would send it for ever.
func TestInboundFaultyEDUs(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		unwanted := object{"n": -1}
		with := func(key string, value any) object {
			edu := remote.ToDevice(unique("id"), To(unwanted, bob))
			if content := edu["content"].(object); value == nil {
				delete(content, key)
			} else {
				content[key] = value
			}
			return edu
		}
		messages := func(m any) object { return with("messages", m) }
		without := func(key string) object { return with(key, nil) }
		content := func(c any) object { edu := with("type", "m.test"); edu["content"] = c; return edu }
		user, device := bob.UserID.String(), bob.DeviceID.String()
		faulty := map[string]object{
			"sender of another server":   with("sender", "@mallory:example.org"),
			"sender of ours":             with("sender", bob.UserID),
			"sender without a server":    with("sender", "@mallory"),
			"sender is no user":          with("sender", "mallory:"+remote.Name),
			"sender is a number":         with("sender", 1),
			"no sender":                  without("sender"),
			"no message_id":              without("message_id"),
			"empty message_id":           with("message_id", ""),
			"message_id is a number":     with("message_id", 1),
			"33 characters":              with("message_id", strings.Repeat("x", 33)),
			"33 wide characters":         with("message_id", strings.Repeat("é", 33)),
			"no type":                    without("type"),
			"type is an object":          with("type", object{}),
			"no messages":                without("messages"),
			"messages is an array":       messages([]any{To(unwanted, bob)}),
			"messages is a string":       messages("all"),
			"a user's part is an array":  messages(object{user: []any{unwanted}}),
			"a user's part is a string":  messages(object{user: "x"}),
			"a content is an array":      messages(object{user: object{device: []any{unwanted}}}),
			"a content is a string":      messages(object{user: object{device: "x"}}),
			"a content is null":          messages(object{user: object{device: nil}}),
			"the EDU's content is null":  content(nil),
			"the EDU's content a string": content("x"),
			"the EDU's content an array": content([]any{}),
			// Clients can't read it, and /sync can't send it.
			"nested deep":  messages(object{user: object{device: json.RawMessage(nested(101))}}),
			"nested abyss": messages(object{user: object{device: json.RawMessage(nested(9900))}}),
		}
		// PostgreSQL can't hold some of these, and some are longer than a row of an index may be.
		nul, long := "a\x00b", strings.Repeat("x", 3000)
		doubtful := map[string]object{
			"NUL in the type":           with("type", nul),
			"NUL in the message_id":     with("message_id", nul),
			"NUL in the sender":         with("sender", "@"+nul+":"+remote.Name),
			"NUL in a user":             messages(object{"@" + nul + ":" + here.name: object{"*": unwanted}}),
			"NUL in a device":           messages(object{user: object{nul: unwanted}}),
			"a surrogate in the type":   with("type", json.RawMessage(`"m.\ud800"`)),
			"a surrogate in message_id": with("message_id", json.RawMessage(`"\udfff"`)),
			"long type":                 with("type", long),
			"long sender":               with("sender", "@"+long+":"+remote.Name),
			"long user":                 messages(object{"@" + long + ":" + here.name: object{"*": unwanted}}),
			"long device":               messages(object{user: object{long: unwanted}}),
			"no devices":                messages(object{user: object{}}),
			"no users":                  messages(object{}),
			"a user of another server":  messages(object{"@bob:example.org": object{"*": unwanted}}),
			"large":                     messages(object{user: object{device: object{"n": -1, "a": strings.Repeat("x", 2*maxMessageBytes)}}}),
		}
		good := func(n int) object { return remote.ToDevice(unique("id"), To(object{"n": n}, bob)) }
		since, n := "", 0
		// Of those that fail the first says what is wrong: what it leaves behind is in the way of the others.
		for name, edu := range faulty {
			passed := t.Run(name, func(t *testing.T) {
				remote.MustSend(t, here, unique("txn"), good(n), edu, good(n+1))
				n += 2
				var events []Event
				events, since = bob.Receive(t, since, 2)
				wantNumbers(t, numbers(t, events), n-2, n)
				since = bob.Settle(t, since)
			})
			if !passed {
				return
			}
		}
		for name, edu := range doubtful {
			passed := t.Run(name, func(t *testing.T) {
				remote.MustSend(t, here, unique("txn"), good(n), edu, good(n+1))
				n += 2
				wantNumbers(t, theGoodOnes(t, bob, &since, n-1), n-2, n)
			})
			if !passed {
				return
			}
		}
		// The longest message_id that is allowed.
		edu := good(n)
		edu["content"].(object)["message_id"] = strings.Repeat("é", 32)
		remote.MustSend(t, here, unique("txn"), edu)
		wantNumbers(t, theGoodOnes(t, bob, &since, n), n, n+1)
	})
}

// theGoodOnes receives until a number has come, and returns those that are not negative.
func theGoodOnes(t *testing.T, c *Client, since *string, last int) (got []int) {
	t.Helper()
	eventually(t, "the good ones arrive", func() (bool, any) {
		res := c.Sync(t, Sync{Since: *since})
		*since = res.NextBatch
		for _, n := range numbers(t, res.Events()) {
			if n >= 0 {
				got = append(got, n)
			}
		}
		return slices.Contains(got, last), got
	})
	return got
}

// "*" is every device of the user; users and devices that are not there are passed over, as are those of
// another server.
func TestInboundRecipients(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob, carol := Register(t, here, "bob"), Register(t, here, "carol")
		second := bob.Login(t, here, "SECOND")
		content := object{"n": 0}
		remote.MustSend(t, here, "1",
			remote.ToDevice("1", Messages{bob.UserID: {"*": content}}),
			remote.ToDevice("2", Messages{
				bob.UserID:   {"SECOND": object{"n": 1}, "NOSUCHDEVICE": content, "": content},
				carol.UserID: {"*": content},
				id.UserID("@" + unique("nobody") + ":" + here.name): {"*": content, "FIRST": content},
				remote.User("mallory"):                              {"*": content},
				"@someone:example.org":                              {"*": content},
				"bob":                                               {"*": content},
				"":                                                  {"*": content},
			}),
			remote.ToDevice("3", Messages{bob.UserID: {"FIRST": object{"n": 1}, "SECOND": object{"n": 2}}}),
		)
		for _, want := range []struct {
			device *Client
			n      int
		}{{bob, 2}, {second, 3}, {carol, 1}} {
			events, since := want.device.Receive(t, "", want.n)
			wantNumbers(t, numbers(t, events), 0, want.n)
			if events[0].Sender != string(remote.User("mallory")) || events[0].Type != "m.test" || len(events[0].Keys) != 3 {
				t.Errorf("want sender, type and content, got %s", events[0].Keys)
			}
			want.device.Settle(t, since)
		}
		// A device that is made later gets nothing of it.
		later := bob.Login(t, here, "NOSUCHDEVICE")
		later.WantNothing(t, "")
	})
}

// A message wakes the /sync that waits for it.
func TestInboundWakesUp(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		since := bob.Settle(t, "")
		res := duringSync(t, bob, Sync{Since: since, Timeout: longPoll}, func() {
			remote.MustSend(t, here, "1", remote.ToDevice("1", To(object{"n": 0}, bob)))
		})
		wantNumbers(t, numbers(t, res.Events()), 0, 1)
	})
}

// A transaction with more in it than one may have, or without a good signature, is refused whole.
func TestInboundRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		unwanted := []any{remote.ToDevice("unwanted", To(object{"n": -1}, bob))}
		fill := func(n int) []any {
			return slices.Repeat([]any{object{"edu_type": "m.unknown", "content": object{}}}, n)
		}
		for name, test := range map[string]struct {
			transaction OwnTransaction
			want        int
		}{
			"101 EDUs":     {OwnTransaction{ID: "a", EDUs: append(fill(100), unwanted...)}, http.StatusBadRequest},
			"51 PDUs":      {OwnTransaction{ID: "b", EDUs: unwanted, PDUs: slices.Repeat([]any{object{}}, 51)}, http.StatusBadRequest},
			"wrong key":    {OwnTransaction{ID: "c", EDUs: unwanted, WrongKey: true}, http.StatusUnauthorized},
			"no signature": {OwnTransaction{ID: "d", EDUs: unwanted, Unsigned: true}, http.StatusUnauthorized},
		} {
			t.Run(name, func(t *testing.T) {
				if a := remote.Send(t, here, test.transaction); a.Status != test.want {
					t.Errorf("want %d, got %v", test.want, a)
				}
				bob.WantNothing(t, "")
			})
		}
		edus := fill(99)
		edus = slices.Insert(edus, 50, any(remote.ToDevice("1", To(object{"n": 0}, bob))))
		if a := remote.Send(t, here, OwnTransaction{ID: "e", EDUs: edus, PDUs: slices.Repeat([]any{object{}}, 50)}); a.Status != http.StatusOK {
			t.Errorf("100 EDUs and 50 PDUs: want 200, got %v", a)
		}
		wantOne(t, bob, "")
		// A refusal is no processing: the message_id is still good.
		remote.MustSend(t, here, "f", unwanted...)
		bob.Receive(t, "", 2)
	})
}

// The largest transaction that there can be: a hundred EDUs of 64 KiB.
func TestInboundLargeTransaction(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		bob := Register(t, here, "bob")
		var edus []any
		for n := range maxEDUs {
			edus = append(edus, remote.ToDevice(fmt.Sprint(n), To(object{"n": n, "a": strings.Repeat("x", maxEDUBytes-1024)}, bob)))
		}
		remote.MustSend(t, here, "1", edus...)
		remote.MustSend(t, here, "2", remote.ToDevice("last", To(object{"n": maxEDUs}, bob)))
		events, since := bob.Receive(t, "", maxEDUs+1)
		wantNumbers(t, numbers(t, events), 0, maxEDUs+1)
		bob.Settle(t, since)
	})
}

// The host still gets what is not for devices, room events too, in a transaction with ours.
func TestInboundOtherEDUs(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		alice := Register(t, here, "alice")
		room := joinRoom(t, alice)
		remote.Join(t, here, room, remote.User("bob"))
		awaitMembers(t, alice, room, remote.User("bob"))
		since := alice.Settle(t, alice.Sync(t, Sync{}).NextBatch)
		remote.MustSend(t, here, "1",
			object{"edu_type": "m.unknown", "content": object{}},
			remote.ToDevice("1", To(object{"n": 0}, alice)),
			object{"edu_type": "m.typing", "content": object{"room_id": room, "user_id": remote.User("bob"), "typing": true}},
			remote.ToDevice("2", To(object{"n": 1}, alice)),
		)
		var events []Event
		joined := ""
		eventually(t, "the messages and the typing arrive", func() (bool, any) {
			res := alice.Sync(t, Sync{Since: since})
			events, since = append(events, res.Events()...), res.NextBatch
			joined += string(res.Rooms.Join[room])
			return len(events) >= 2 && strings.Contains(joined, "m.typing") && strings.Contains(joined, string(remote.User("bob"))), []any{len(events), joined}
		})
		wantNumbers(t, numbers(t, events), 0, 2)
	})
}
