package smallhost

import (
	"context"
	"errors"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
)

func accountFaults() map[string][]Fault {
	return map[string][]Fault{
		"local-servers-are-known": {
			{What: "every server is the host's own", breaks: func(_ *host, b *broken) {
				b.host.isLocalServer = func(string) bool { return true }
			}},
			{What: "the host's own name without its port is its own too", breaks: func(h *host, b *broken) {
				b.host.isLocalServer = func(serverName string) bool {
					withoutPort, _, _ := strings.Cut(string(h.name), ":")
					return serverName == withoutPort || h.IsLocalServer(serverName)
				}
			}},
		},
		"federation-is-told": {{What: "the host says that it sends to nobody", breaks: func(_ *host, b *broken) {
			b.host.federates = func() bool { return false }
		}}},
		"all-devices-are-listed": {
			{What: "only the first device is listed", breaks: func(h *host, b *broken) {
				b.host.userDevices = func(ctx context.Context, userID string) ([]string, error) {
					deviceIDs, err := h.UserDevices(ctx, userID)
					return deviceIDs[:min(len(deviceIDs), 1)], err
				}
			}},
			{What: "device IDs are listed in upper case", breaks: func(h *host, b *broken) {
				b.host.userDevices = func(ctx context.Context, userID string) ([]string, error) {
					deviceIDs, err := h.UserDevices(ctx, userID)
					for i, deviceID := range deviceIDs {
						deviceIDs[i] = strings.ToUpper(deviceID)
					}
					return deviceIDs, err
				}
			}},
			{What: "a device is listed that was deleted", breaks: func(h *host, b *broken) {
				b.host.userDevices = func(ctx context.Context, userID string) ([]string, error) {
					deviceIDs, err := h.UserDevices(ctx, userID)
					if len(deviceIDs) == 0 {
						return deviceIDs, err
					}
					return append(deviceIDs, "DELETED"), err
				}
			}},
		},
		"unknown-users-have-no-devices": {{What: "an unknown user is an error", breaks: func(h *host, b *broken) {
			b.host.userDevices = func(ctx context.Context, userID string) ([]string, error) {
				deviceIDs, err := h.UserDevices(ctx, userID)
				if err == nil && h.accounts.now().Users[userID] == nil {
					err = errForbidden
				}
				return deviceIDs, err
			}
		}}},
		"users-of-others-are-not-local": {{What: "users of other servers have no devices", breaks: func(h *host, b *broken) {
			b.host.userDevices = func(ctx context.Context, userID string) ([]string, error) {
				deviceIDs, err := h.UserDevices(ctx, userID)
				if errors.Is(err, devices.ErrNotLocal) {
					err = nil
				}
				return deviceIDs, err
			}
		}}},
		"device-owners-are-found": {
			{What: "no device has an owner", breaks: func(_ *host, b *broken) {
				b.host.deviceOwners = func(context.Context, []string) (map[string]string, error) { return map[string]string{}, nil }
			}},
			{What: "a hundred devices are looked for", breaks: func(h *host, b *broken) {
				const most = 100
				b.host.deviceOwners = func(ctx context.Context, deviceIDs []string) (map[string]string, error) {
					return h.DeviceOwners(ctx, deviceIDs[:min(len(deviceIDs), most)])
				}
			}},
			{What: "devices that do not exist have an owner", breaks: func(h *host, b *broken) {
				b.host.deviceOwners = func(ctx context.Context, deviceIDs []string) (map[string]string, error) {
					owners, err := h.DeviceOwners(ctx, deviceIDs)
					for _, deviceID := range deviceIDs {
						if owners[deviceID] == "" {
							owners[deviceID] = h.userID("somebody")
						}
					}
					return owners, err
				}
			}},
		},
		"failed-look-ups-are-errors": {{What: "who could not look has found nothing", breaks: func(h *host, b *broken) {
			b.host.userDevices = func(ctx context.Context, userID string) ([]string, error) {
				if ctx.Err() != nil {
					return nil, nil
				}
				return h.UserDevices(ctx, userID)
			}
		}}},
		"listed-devices-are-not-virtual": {{What: "every device is virtual", breaks: func(_ *host, b *broken) {
			b.host.virtualDevice = func(string) bool { return true }
		}}},
	}
}
