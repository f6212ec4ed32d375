package hosttest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
)

// accountPromises are about what the homeserver knows of its users and of itself.
var accountPromises = []Promise{
	{
		Name:  "local-servers-are-known",
		Text:  "IsLocalServer says yes to the homeserver's own name, and no to every other.",
		check: localServersAreKnown,
	},
	{
		Name:  "federation-is-told",
		Text:  "Federates says yes where the homeserver sends to others.",
		check: federationIsTold,
	},
	{
		Name:  "all-devices-are-listed",
		Text:  "UserDevices returns the IDs of all devices of a local user, as soon as they are created and until they are deleted.",
		check: allDevicesAreListed,
	},
	{
		Name:  "unknown-users-have-no-devices",
		Text:  "UserDevices returns no devices and no error for a local user who does not exist.",
		check: unknownUsersHaveNoDevices,
	},
	{
		Name:  "users-of-others-are-not-local",
		Text:  "UserDevices returns devices.ErrNotLocal for users of other servers, and for what is no user ID.",
		check: usersOfOthersAreNotLocal,
	},
	{
		Name:  "device-owners-are-found",
		Text:  "DeviceOwners returns a user who has the device for each of the device IDs that exists, and nothing for the others.",
		check: deviceOwnersAreFound,
	},
	{
		Name:  "failed-look-ups-are-errors",
		Text:  "UserDevices and DeviceOwners return an error where they could not look, and not an answer with less in it.",
		check: failedLookUpsAreErrors,
	},
	{
		Name:  "listed-devices-are-not-virtual",
		Text:  "VirtualDevice says no to the devices that UserDevices lists.",
		check: listedDevicesAreNotVirtual,
	},
}

func localServersAreKnown(_ context.Context, tr *trial) error {
	own := tr.setup.ServerName
	host, port, err := net.SplitHostPort(own)
	if err != nil {
		return err
	}
	for name, want := range map[string]bool{
		own: true, own + "0": false, host: false, host + ":1": false, "other.example.org:" + port: false, "other.example.org": false, "": false,
	} {
		if got := tr.homeserver().IsLocalServer(name); got != want {
			return fmt.Errorf("IsLocalServer of %q on the server %q: want %v, got %v", name, own, want, got)
		}
	}
	return nil
}

func federationIsTold(_ context.Context, tr *trial) error {
	if !tr.homeserver().Federates() {
		return errors.New("the homeserver says by Federates that it does not")
	}
	return nil
}

// household makes a user with the devices FIRST, SECOND and third.
func (tr *trial) household(ctx context.Context) ([]*client, error) {
	first, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return nil, err
	}
	all := []*client{first}
	for _, deviceID := range []string{"SECOND", "third"} {
		c, err := first.login(ctx, deviceID)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// logout ends a device.
func (c *client) logout(ctx context.Context) error {
	return c.must(ctx, http.MethodPost, "/logout", object{}, nil)
}

func allDevicesAreListed(ctx context.Context, tr *trial) error {
	alice, err := tr.household(ctx)
	if err != nil {
		return err
	}
	if err = tr.wantDevices(ctx, alice[0].UserID, "FIRST", "SECOND", "third"); err != nil {
		return err
	}
	if err = alice[1].logout(ctx); err != nil {
		return err
	}
	return tr.wantDevices(ctx, alice[0].UserID, "FIRST", "third")
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

func unknownUsersHaveNoDevices(ctx context.Context, tr *trial) error {
	return tr.wantDevices(ctx, "@"+tr.name("nobody")+":"+tr.setup.ServerName)
}

func usersOfOthersAreNotLocal(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	localpart := alice.UserID[1 : len(alice.UserID)-len(":"+tr.setup.ServerName)]
	for _, userID := range []string{"@" + localpart + ":other.example.org", "@" + localpart, localpart, ":" + tr.setup.ServerName, ""} {
		got, err := tr.homeserver().UserDevices(ctx, userID)
		if err == nil {
			return fmt.Errorf("UserDevices of %q: want devices.ErrNotLocal, got %q", userID, got)
		}
		if !errors.Is(err, devices.ErrNotLocal) {
			return fmt.Errorf("UserDevices of %q: want devices.ErrNotLocal, got %w", userID, err)
		}
	}
	return nil
}

// mostAsked is how many device IDs the module asks DeviceOwners for at the most.
const mostAsked = 500

func deviceOwnersAreFound(ctx context.Context, tr *trial) error {
	both := tr.name("BOTH")
	alice, err := tr.register(ctx, "alice", both)
	if err != nil {
		return err
	}
	bob, err := tr.register(ctx, "bob", both)
	if err != nil {
		return err
	}
	alices, err := alice.login(ctx, tr.name("ALICES"))
	if err != nil {
		return err
	}
	bobs, err := bob.login(ctx, tr.name("BOBS"))
	if err != nil {
		return err
	}
	gone, err := bob.login(ctx, tr.name("GONE"))
	if err != nil {
		return err
	}
	if err = gone.logout(ctx); err != nil {
		return err
	}
	var asked []string
	for range mostAsked - 4 {
		asked = append(asked, tr.name("NOSUCH"))
	}
	got, err := tr.homeserver().DeviceOwners(ctx, append(asked, both, alices.DeviceID, bobs.DeviceID, gone.DeviceID))
	if err != nil {
		return fmt.Errorf("DeviceOwners: %w", err)
	}
	if owner := got[both]; owner != alice.UserID && owner != bob.UserID {
		return fmt.Errorf("DeviceOwners of a device that %s and %s have: got %q", alice.UserID, bob.UserID, owner)
	}
	delete(got, both)
	if want := map[string]string{alices.DeviceID: alice.UserID, bobs.DeviceID: bob.UserID}; !maps.Equal(got, want) {
		return fmt.Errorf("DeviceOwners of the others: want %v, got %v", want, got)
	}
	return nil
}

// failedLookUpsAreErrors looks with a context that has ended. Who knows the answer without looking may answer.
func failedLookUpsAreErrors(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", tr.name("FIRST"))
	if err != nil {
		return err
	}
	ended, end := context.WithCancel(ctx)
	end()
	if got, err := tr.homeserver().UserDevices(ended, alice.UserID); err == nil && !slices.Equal(got, []string{alice.DeviceID}) {
		return fmt.Errorf("UserDevices with a context that has ended: want an error, or the device, got %q", got)
	}
	if got, err := tr.homeserver().DeviceOwners(ended, []string{alice.DeviceID}); err == nil && got[alice.DeviceID] != alice.UserID {
		return fmt.Errorf("DeviceOwners with a context that has ended: want an error, or the owner, got %v", got)
	}
	return nil
}

func listedDevicesAreNotVirtual(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	listed, err := tr.homeserver().UserDevices(ctx, alice.UserID)
	if err != nil {
		return err
	}
	for _, deviceID := range listed {
		if tr.homeserver().VirtualDevice(deviceID) {
			return fmt.Errorf("VirtualDevice of %q says yes", deviceID)
		}
	}
	return nil
}
