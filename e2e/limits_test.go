package e2e

import "testing"

// A queue over its bound loses its oldest messages, and key requests over their rate reach no other user; both are answered
// 200. Devices within the limits get everything.
func TestLimits(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		const bound, burst = 100, 5
		s := StartServer(t, b, Options{ToDevice: object{"limits": object{
			"queue_messages": bound, "key_requests_per_second": 1, "key_requests_burst": burst,
		}}})
		db := s.OpenDatabase(t)
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		sendNumbered(t, alice, bob, 0, bound+50)
		sendNumbered(t, alice, carol, 0, bound)
		eventually(t, "the queue is held to its bound", func() (bool, any) {
			n := queued(t, db, bob)
			return n == bound, n
		})
		for c, first := range map[*Client]int{bob: 50, carol: 0} {
			events, since := c.Receive(t, "", bound)
			wantNumbers(t, numbers(t, events), first, first+bound)
			c.Settle(t, since)
		}

		many := Messages{bob.UserID: {}}
		for range 3 * burst {
			many[bob.UserID][bob.Login(t, s, "").DeviceID] = object{"requesting_device_id": alice.DeviceID}
		}
		alice.Send(t, "m.room_key_request", many)
		var asked int
		err := db.QueryRow("SELECT COUNT(*) FROM todevice_messages WHERE type = 'm.room_key_request'").Scan(&asked)
		if err != nil || asked < burst || asked >= 3*burst {
			t.Errorf("%d devices were asked for keys, want %d and what a second allows: %v", asked, burst, err)
		}
	})
}
