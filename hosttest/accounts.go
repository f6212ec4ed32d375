package hosttest

import (
	"context"
	"fmt"
	"slices"
)

// accountPromises are about what the homeserver knows of its users and of itself.
var accountPromises = []Promise{
	{
		Name:  "all-devices-are-listed",
		Text:  "UserDevices returns the IDs of all devices of a local user, as soon as they are created and until they are deleted.",
		check: allDevicesAreListed,
	},
}

func allDevicesAreListed(ctx context.Context, tr *trial) error {
	first, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	devices := []*client{first}
	for _, deviceID := range []string{"SECOND", "THIRD"} {
		c, err := first.login(ctx, deviceID)
		if err != nil {
			return err
		}
		devices = append(devices, c)
	}
	if err = tr.wantDevices(ctx, first.UserID, "FIRST", "SECOND", "THIRD"); err != nil {
		return err
	}
	if err = devices[1].must(ctx, "POST", "/logout", object{}, nil); err != nil {
		return err
	}
	return tr.wantDevices(ctx, first.UserID, "FIRST", "THIRD")
}

// wantDevices returns an error unless the homeserver lists exactly these devices.
func (tr *trial) wantDevices(ctx context.Context, userID string, want ...string) error {
	got, err := tr.homeserver().UserDevices(ctx, userID)
	if err != nil {
		return fmt.Errorf("UserDevices of %s: %w", userID, err)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("UserDevices of %s: want %q, got %q", userID, want, got)
	}
	return nil
}
