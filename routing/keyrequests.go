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
// devices are not counted: there the requests serve, and nobody else pays for them.
func (h *SendToDevice) withinKeyRequestRate(m *writer.Message, targets []devices.Target) (kept []devices.Target) {
	if h.KeyRequests == nil || m.Type != types.RoomKeyRequest {
		return targets
	}
	slices.SortFunc(targets, func(a, b devices.Target) int { // the same ones each time
		return cmp.Or(cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	for _, target := range targets {
		if target.UserID == m.Sender || h.KeyRequests.Allow(m.Transaction.Device, 1) {
			kept = append(kept, target)
		} else {
			h.drop(m, trace.KeyRequestRate, target)
		}
	}
	return kept
}
