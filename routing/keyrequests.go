package routing

import (
	"cmp"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// withinKeyRequestRate passes over the targets for which a device asks other users for keys too often. Its own user's
// devices are not counted: there the requests serve, and nobody else pays for them.
func (h *SendToDevice) withinKeyRequestRate(sender types.Device, eventType string, targets []devices.Target) (kept, dropped []devices.Target) {
	if h.KeyRequests == nil || eventType != types.RoomKeyRequest {
		return targets, nil
	}
	slices.SortFunc(targets, func(a, b devices.Target) int { // the same ones each time
		return cmp.Or(cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	for _, target := range targets {
		if target.UserID == sender.UserID || h.KeyRequests.Allow(sender, 1) {
			kept = append(kept, target)
		} else {
			dropped = append(dropped, target)
		}
	}
	return kept, dropped
}
