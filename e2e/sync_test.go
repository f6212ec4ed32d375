package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// What an ignored user sends is dropped, whether they share a room with the receiver or not, and
// a flood of it does not hold up what others send.
func TestIgnoredUsers(t *testing.T) {
	for name, shareRoom := range map[string]bool{"in no room": false, "in a shared room": true} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				s := SharedServer(t, b)
				alice, bob, mallory := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "mallory")
				var room id.RoomID
				if shareRoom {
					room = joinRoom(t, bob, alice, mallory)
				}
				ignore(t, bob, mallory)
				since := bob.Sync(t, Sync{}).NextBatch
				since = bob.Settle(t, since)

				for n := range 3 {
					mallory.Send(t, "m.test", To(object{"n": 100}, bob))
					alice.Send(t, "m.test", To(object{"n": n}, bob))
				}
				if shareRoom { // a response that brings a message of the room as well
					if _, err := alice.SendText(t.Context(), room, "hello"); err != nil {
						t.Fatal(err)
					}
				}
				wantNumbers(t, numbers(t, bob.Sync(t, Sync{}).Events()), 0, 3)
				events, since := bob.Receive(t, since, 3)
				wantNumbers(t, numbers(t, events), 0, 3)
				since = bob.Settle(t, since)

				// A flood: the first /sync that has something to say says the good one.
				flood(t, mallory, bob, 300)
				alice.Send(t, "m.test", To(object{"n": 0}, bob))
				res := bob.Sync(t, Sync{Since: since, Timeout: longPoll})
				wantNumbers(t, numbers(t, res.Events()), 0, 1)

				// The flood is deleted like what was read.
				since = bob.Settle(t, res.NextBatch)
				db := s.OpenDatabase(t)
				eventually(t, "the queue is empty", func() (bool, any) {
					n := queued(t, db, bob)
					return n == 0, n
				})
				wantBlocks(t, bob, since)
				// Mallory still reaches those who do not ignore them.
				mallory.Send(t, "m.test", To(object{"n": 0}, alice))
				wantOne(t, alice, "")
			})
		})
	}
}

// A /sync that waits does not come back with nothing because an ignored user sent something.
func TestIgnoredUserDoesNotWake(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob, mallory := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "mallory")
		ignore(t, bob, mallory)
		since := bob.Settle(t, bob.Sync(t, Sync{}).NextBatch)
		res := duringSync(t, bob, Sync{Since: since, Timeout: longPoll}, func() {
			mallory.Send(t, "m.test", To(object{"n": 100}, bob))
			alice.Send(t, "m.test", To(object{"n": 0}, bob))
		})
		wantNumbers(t, numbers(t, res.Events()), 0, 1)
	})
}

// A filter without rooms, as clients use for the first /sync of a key back-up, shows to_device.
func TestFilterWithoutRooms(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		joinRoom(t, bob, alice)
		sendNumbered(t, alice, bob, 0, 1)
		filter := `{"room":{"rooms":[]}}`
		res := bob.Sync(t, Sync{Filter: filter})
		wantNumbers(t, numbers(t, res.Events()), 0, 1)
		since := res.NextBatch
		sendNumbered(t, alice, bob, 1, 2)
		res = bob.Sync(t, Sync{Since: since, Filter: filter, Timeout: longPoll})
		wantNumbers(t, numbers(t, res.Events()), 1, 2)
		stored, err := bob.CreateFilter(t.Context(), &mautrix.Filter{Room: &mautrix.RoomFilter{}})
		if err != nil {
			t.Fatal(err)
		}
		res = bob.Sync(t, Sync{Since: since, Filter: stored.FilterID})
		wantNumbers(t, numbers(t, res.Events()), 1, 2)
	})
}

// Clients upload keys when the count is low, so that a response without it stops them from
// being reached.
func TestOneTimeKeyCounts(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		keys := object{}
		for n := range 5 {
			keys[fmt.Sprintf("signed_curve25519:AAA%d", n)] = object{"key": "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs", "signatures": object{}}
		}
		a := bob.do(t.Context(), http.MethodPost, bob.BuildClientURL("v3", "keys", "upload"), mustJSON(object{"one_time_keys": keys}))
		if a.Status != http.StatusOK {
			t.Fatalf("uploading keys: %v", a)
		}
		want := func(what string, res *SyncResponse) {
			t.Helper()
			if got := res.OneTimeKeys["signed_curve25519"]; got != 5 {
				t.Errorf("%s: want 5 one-time keys, got %d", what, got)
			}
		}
		res := bob.Sync(t, Sync{})
		want("no since", res)
		since := bob.Settle(t, res.NextBatch)
		want("nothing new", bob.Sync(t, Sync{Since: since}))
		want("timeout", bob.Sync(t, Sync{Since: since, Timeout: shortPoll}))
		sendNumbered(t, alice, bob, 0, 1)
		res = bob.Sync(t, Sync{Since: since})
		wantNumbers(t, numbers(t, res.Events()), 0, 1)
		want("a message that waited", res)
		since = bob.Settle(t, res.NextBatch)
		res = duringSync(t, bob, Sync{Since: since, Timeout: longPoll}, func() { sendNumbered(t, alice, bob, 1, 2) })
		wantNumbers(t, numbers(t, res.Events()), 1, 2)
		want("a message that woke it", res)
	})
}

// ignore makes one user ignore another, and waits until /sync knows.
func ignore(t *testing.T, c, ignored *Client) {
	t.Helper()
	const kind = "m.ignored_user_list"
	content := object{"ignored_users": object{ignored.UserID.String(): object{}}}
	if err := c.SetAccountData(t.Context(), kind, content); err != nil {
		t.Fatal(err)
	}
	eventually(t, "/sync shows who is ignored", func() (bool, any) {
		for _, e := range c.Sync(t, Sync{}).AccountData.Events {
			if e.Type == kind {
				return true, nil
			}
		}
		return false, nil
	})
}

// joinRoom makes a room with several members, and waits until the first one's /sync shows it.
func joinRoom(t *testing.T, owner *Client, others ...*Client) id.RoomID {
	t.Helper()
	room, err := owner.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "public_chat"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range others {
		if _, err := c.JoinRoomByID(t.Context(), room.RoomID); err != nil {
			t.Fatal(err)
		}
	}
	members := []id.UserID{owner.UserID}
	for _, c := range others {
		members = append(members, c.UserID)
	}
	awaitMembers(t, owner, room.RoomID, members...)
	return room.RoomID
}

// awaitMembers returns once /sync shows them in the room: what the host learns of a room after that is told to the room's members.
func awaitMembers(t *testing.T, owner *Client, room id.RoomID, members ...id.UserID) {
	t.Helper()
	eventually(t, "/sync shows the room and its members", func() (bool, any) {
		joined := string(owner.Sync(t, Sync{}).Rooms.Join[room])
		for _, member := range members {
			if !strings.Contains(joined, member.String()) {
				return false, joined
			}
		}
		return true, nil
	})
}

func flood(t *testing.T, from, to *Client, n int) {
	t.Helper()
	var wait sync.WaitGroup
	for range 10 {
		wait.Go(func() {
			for range n / 10 {
				if a := from.Put(t.Context(), "m.flood", unique("txn"), To(object{"n": -1}, to).Body()); a.Status != http.StatusOK {
					t.Errorf("sending: %v", a)
					return
				}
			}
		})
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
}
