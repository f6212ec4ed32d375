package e2e

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

// A request to many devices of one server goes there in as few EDUs as hold it.
func TestManyRemoteDevices(t *testing.T) {
	for name, size := range map[string]struct{ users, devices, content int }{
		"1000 devices of 250 users":   {250, 4, 800},
		"120 devices of one user":     {1, 120, 2 << 10},
		"600 users with small things": {600, 1, 20},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b Backend) {
				here := SharedFederated(t, b)
				remote := NewFakeRemote(t, here)
				alice := Register(t, here, "alice")
				messages := Messages{}
				for user := range size.users {
					devices := map[id.DeviceID]any{}
					for device := range size.devices {
						own := fmt.Sprintf("%d.%d.", user, device)
						devices[id.DeviceID(fmt.Sprintf("DEVICE%d", device))] = object{"a": own + strings.Repeat("x", size.content-len(own))}
					}
					messages[remote.User(fmt.Sprintf("user%d", user))] = devices
				}
				alice.Send(t, "m.test", messages)
				n := size.users * size.devices
				wantAllOnce(t, remote.Receive(t, n, deadline), messages)

				// An EDU is filled until the next message does not fit.
				const envelope = 512
				total, perEDU := len(canonical(mustJSON(messages))), maxEDUBytes-envelope-size.content-64
				most := (total + perEDU - 1) / perEDU
				edus := toDeviceEDUs(remote)
				t.Logf("%d bytes in %d EDUs", total, edus)
				if edus > most {
					t.Errorf("want at most %d EDUs for %d bytes, got %d", most, total, edus)
				}
			})
		})
	}
}

// What is larger than an EDU should be, but not than a message may be, goes alone.
func TestLargeRemoteMessages(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		alice := Register(t, here, "alice")
		content := func(size int) any {
			return object{"a": strings.Repeat("x", size-len(`{"a":""}`))}
		}
		messages := Messages{remote.User("bob"): {
			"A": content(60 << 10), "B": content(maxMessageBytes - 100), "C": content(maxMessageBytes), "D": content(10),
			"E": content(maxMessageBytes / 2), "F": content(maxMessageBytes / 2),
		}}
		alice.Send(t, "m.test", messages)
		alice.Send(t, "m.test", To(object{"n": 0}, remote.Device("bob", "LAST")))
		messages[remote.User("bob")]["LAST"] = object{"n": 0}
		wantAllOnce(t, remote.Receive(t, 7, deadline), messages)
		if edus := toDeviceEDUs(remote); edus > 7 {
			t.Errorf("want at most 7 EDUs, got %d", edus)
		}
		wantNothingKept(t, here, remote.Name)
	})
}

// Forty of the largest messages: as much as is in no transaction at once.
func TestManyLargeRemoteMessages(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		release := make(chan struct{})
		remote.Script(acceptLate(release))
		for n := range 40 {
			alice.Send(t, "m.test", To(object{"n": n, "a": strings.Repeat("x", maxMessageBytes-100)}, device))
		}
		close(release)
		remote.WantNumbers(t, 40, deadline)
		largest := 0
		for _, x := range remote.Transactions() {
			largest = max(largest, len(x.Body))
		}
		t.Logf("the largest transaction has %d bytes", largest)
		const sensible = 20 * maxMessageBytes // half of all
		if largest > sensible {
			t.Errorf("a transaction of %d bytes", largest)
		}
	})
}

// wantAllOnce fails the test unless each message arrived, once, with its content.
func wantAllOnce(t *testing.T, got []RemoteMessage, want Messages) {
	t.Helper()
	seen := map[string]int{}
	for _, m := range got {
		key := m.To.String() + " " + m.Device.String()
		if seen[key]++; seen[key] > 1 {
			t.Errorf("%s got %d messages", key, seen[key])
		}
		if string(canonical(m.Content)) != string(canonical(mustJSON(want[m.To][m.Device]))) {
			t.Errorf("%s got another content", key)
		}
	}
	n := 0
	for _, devices := range want {
		n += len(devices)
	}
	if len(seen) != n {
		t.Errorf("want %d devices to get a message, got %d", n, len(seen))
	}
}

// toDeviceEDUs counts the different EDUs that came.
func toDeviceEDUs(r *FakeRemote) int {
	ids := map[string]bool{}
	for _, x := range r.Transactions() {
		for _, edu := range x.EDUs {
			if edu.ToDevice != nil {
				ids[edu.ToDevice.MessageID] = true
			}
		}
	}
	return len(ids)
}
