package routing

import (
	"cmp"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// withinKeyRequestRate passes over the targets for which a device asks other users for keys too often. Its own user's
// devices are not counted: there the requests serve, and nobody else pays for them. Those that are counted giveBack takes back: it
// is to be called if the message is not stored, since it is sent again then.
func (h *SendToDevice) withinKeyRequestRate(m *writer.Message, targets []devices.Target) (kept []devices.Target, giveBack func()) {
	if h.KeyRequests == nil || m.Type != types.RoomKeyRequest {
		return targets, func() {}
	}
	slices.SortFunc(targets, func(a, b devices.Target) int { // the same ones each time
		return cmp.Or(cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	counted := 0
	for _, target := range targets {
		switch {
		case target.UserID == m.Sender:
			kept = append(kept, target)
		case h.KeyRequests.Allow(m.Transaction.Device, 1):
			kept = append(kept, target)
			counted++
		default:
			h.drop(m, trace.KeyRequestRate, target)
		}
	}
	return kept, func() { h.KeyRequests.GiveBack(m.Transaction.Device, counted) }
}
