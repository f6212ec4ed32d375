package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// "*" is every device the user has when the message is stored; a device that is named beside it
// gets its own content and nothing else.
func TestAllDevices(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		second := bob.Login(t, s, "SECOND")
		all := Messages{bob.UserID: {"*": object{"n": 0}}}
		alice.Send(t, "m.test", all)

		// A device that was not there a moment ago, and one that is gone since.
		third := bob.Login(t, s, "THIRD")
		alice.Send(t, "m.test", Messages{bob.UserID: {"*": object{"n": 1}}})
		if _, err := second.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
		alice.Send(t, "m.test", Messages{bob.UserID: {"*": object{"n": 2}, third.DeviceID: object{"n": 3}}, carol.UserID: {"*": object{"n": 0}}})

		for _, want := range []struct {
			device  *Client
			numbers string
		}{{bob, "[0 1 2]"}, {third, "[1 3]"}, {carol, "[0]"}} {
			if got := fmt.Sprint(numbers(t, want.device.Sync(t, Sync{}).Events())); got != want.numbers {
				t.Errorf("%s %s: want %s, got %s", want.device.UserID, want.device.DeviceID, want.numbers, got)
			}
		}
		// The sender has devices as well, and may send to them.
		other := alice.Login(t, s, "OTHER")
		alice.Send(t, "m.test", Messages{alice.UserID: {"*": object{"n": 0}}})
		wantOne(t, other, "")
		wantOne(t, alice, "")
	})
}

// Unknown users, unknown devices and what is no user ID at all are passed over; who is valid
// beside them gets the message.
func TestUnknownRecipients(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob, carol := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "carol")
		content := object{"n": 0}
		for i, unknown := range []Messages{
			{id.UserID("@" + unique("nobody") + ":" + serverName): {"*": content, "FIRST": content}},
			{bob.UserID: {"NOSUCHDEVICE": content, "": content, "\x00": content, id.DeviceID(strings.Repeat("x", 3000)): content}},
			{"": {"*": content}},
			{"@": {"*": content}},
			{"bob": {"*": content}},
			{"@bob": {"*": content}},
			{"@:" + serverName: {"*": content}},
			{"@bob:": {"*": content}},
			{"@b\x00b:" + serverName: {"FIRST": content}},
			{"!room:" + serverName: {"*": content}},
			{id.UserID(strings.ToUpper(bob.UserID.String())): {}},
			{id.UserID("@" + strings.Repeat("x", 3000) + ":" + serverName): {"*": content}},
			{"@bob:not a server": {"*": content}},
			{"@bob:example.org/path": {"*": content}},
		} {
			m := To(object{"n": i}, bob, carol)
			for user, part := range unknown {
				if m[user] == nil {
					m[user] = map[id.DeviceID]any{}
				}
				for device, content := range part {
					m[user][device] = content
				}
			}
			a := alice.Put(t.Context(), "m.test", unique("txn"), m.Body())
			if a.Status != http.StatusOK {
				t.Errorf("beside %.100v: want 200, got %v", unknown, a)
				m = To(object{"n": i}, bob, carol)
				alice.Send(t, "m.test", m) // so that the others can be counted
			}
			alice.Send(t, "m.test", unknown) // nobody at all
		}
		for _, c := range []*Client{bob, carol} {
			wantNumbers(t, numbers(t, c.Sync(t, Sync{}).Events()), 0, 14)
		}
	})
}

// A message to a device that does not exist is not kept for one that is made later with its ID,
// be it a first device or one that was logged out in between.
func TestDeviceMadeLater(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		to := func(n int) Messages { return Messages{bob.UserID: {"LATER": object{"n": n}}} }
		alice.Send(t, "m.test", to(0))
		alice.Send(t, "m.test", Messages{bob.UserID: {"*": object{"n": 0}}})
		later := bob.Login(t, s, "LATER")
		since := later.Sync(t, Sync{}).NextBatch
		later.WantNothing(t, "")

		alice.Send(t, "m.test", to(1))
		events, since := later.Receive(t, since, 1)
		wantNumbers(t, numbers(t, events), 1, 2)
		later.Settle(t, since)
		if _, err := later.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
		alice.Send(t, "m.test", to(2))
		later = bob.Login(t, s, "LATER")
		later.WantNothing(t, "")
		alice.Send(t, "m.test", to(3))
		events, _ = later.Receive(t, "", 1)
		wantNumbers(t, numbers(t, events), 3, 4)
	})
}

// A client that asks for a device with an empty ID gets one like any other. (Unmodified Dendrite makes one that it never lists.)
func TestDeviceWithAnEmptyID(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		c := newClient(t, s)
		a := c.do(t.Context(), http.MethodPost, c.BuildClientURL("v3", "login"), mustJSON(object{
			"type": "m.login.password", "password": password, "device_id": "",
			"identifier": object{"type": "m.id.user", "user": bob.UserID},
		}))
		var res mautrix.RespLogin
		if err := json.Unmarshal(a.Body, &res); err != nil || a.Status != http.StatusOK || res.DeviceID == "" {
			t.Fatalf("logging in: %v (%v)", a, err)
		}
		unnamed := c.as(res.UserID, res.DeviceID, res.AccessToken)
		alice.Send(t, "m.test", To(object{"n": 0}, unnamed))
		wantOneDelivered(t, alice, unnamed, "")
		for range 2 {
			unnamed.SendTxn(t, "m.test", "1", To(object{"n": 0}, alice))
			bob.Login(t, s, "") // a change of the user's devices
		}
		wantOneDelivered(t, unnamed, alice, "")
	})
}
