package e2e

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix"
)

// A key request from a device that the host does not know, of a user that it knows, has it ask the other
// server for the user's devices. No message waits for the answer, be it from that server or from another.
func TestKeyRequestHoldsUpNobody(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote, other := NewFakeRemote(t, here), NewFakeRemote(t, here)
		bob, mallory := Register(t, here, "bob"), remote.User("mallory")
		keys, err := bob.QueryKeys(t.Context(), &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{mallory: {}}, Timeout: 10000})
		if err != nil || len(keys.DeviceKeys[mallory]) != 1 {
			t.Fatalf("want one device of %s, got %+v, %v", mallory, keys, err)
		}
		known := len(remote.Asked())
		remote.HideDevices()
		since := bob.Settle(t, "")
		request := func(n int) object {
			edu := remote.ToDevice(unique("id"), To(object{"n": n, "requesting_device_id": unique("DEVICE"), "action": "request"}, bob))
			edu["content"].(object)["type"] = "m.room_key_request"
			return edu
		}
		const n = 10
		for i := range n {
			remote.MustSend(t, here, unique("txn"), request(4*i), remote.ToDevice(unique("id"), To(object{"n": 4*i + 1}, bob)))
			other.MustSend(t, here, unique("txn"), other.ToDevice(unique("id"), To(object{"n": 4*i + 2}, bob)))
			bob.Send(t, "m.test", To(object{"n": 4*i + 3}, bob))
		}
		var events []Event
		within(t, contactRecovery, "every message arrives", func() (bool, any) {
			res := bob.Sync(t, Sync{Since: since})
			events, since = append(events, res.Events()...), res.NextBatch
			return len(events) >= 4*n, len(events)
		})
		wantNumbers(t, numbers(t, events), 0, 4*n)
		eventually(t, "the devices are asked for", func() (bool, any) {
			asked := remote.Asked()
			return slices.Contains(asked[known:], mallory.String()), asked
		})
	})
}
