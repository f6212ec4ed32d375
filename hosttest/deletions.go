package hosttest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
)

// deletionPromises are about devices that come and go.
var deletionPromises = []Promise{
	{
		Name:  "new-devices-are-reached",
		Text:  "The homeserver creates a device inside of Module.CreateDevice: a message that is sent as soon as the device is there reaches it.",
		check: newDevicesAreReached,
	},
	{
		Name:  "deleted-devices-leave-nothing",
		Text:  "The homeserver deletes devices inside of Module.DeleteDevices, in whichever way: when the call returns nothing is kept for them, and a device that is made later under the same ID finds nothing (I7).",
		check: deletedDevicesLeaveNothing,
	},
	{
		Name:  "other-devices-keep-theirs",
		Text:  "When devices of a user are deleted, those that are not keep what waits for them.",
		check: otherDevicesKeepTheirs,
	},
	{
		Name:  "failed-clean-ups-are-5xx",
		Text:  "A deletion is answered 5xx where Module.DeleteDevices returns an error: the client is not told that what was kept is gone (I7).",
		check: failedCleanUpsAre5xx,
	},
	{
		Name:  "new-devices-find-nothing",
		Text:  "A device is not created where Module.CreateDevice can't clear away what is left of an earlier one of the same ID (I7).",
		check: newDevicesFindNothing,
	},
	{
		Name:  "deletions-overtake-requests",
		Text:  "A request whose device is deleted while its body arrives is not carried out, nor is its transaction ID remembered for the next device of that ID (I7).",
		check: deletionsOvertakeRequests,
	},
	{
		Name:  "deletions-overtake-syncs",
		Text:  "A /sync whose device is deleted while it reads or waits is answered 401, even if there is a device of that ID again: it gets nothing of what waits for the next one, and Module.HandedOver is not told (I7).",
		check: deletionsOvertakeSyncs,
	},
}

const newPassword = "another password for the checks"

// deletion is a way in which the device GONE of a user who also has the device OTHER comes to its end.
type deletion struct {
	name       string
	all, final bool // all of the user's devices are deleted, and the account too
	call       func(ctx context.Context, gone, other *client) (answer, error)
}

// deletions are those of the client-server API.
func deletions() []deletion {
	const post = http.MethodPost
	return []deletion{
		{name: "logout", call: func(ctx context.Context, gone, _ *client) (answer, error) {
			return gone.do(ctx, post, "/logout", object{})
		}},
		{name: "logout/all", all: true, call: func(ctx context.Context, gone, _ *client) (answer, error) {
			return gone.do(ctx, post, "/logout/all", object{})
		}},
		{name: "the deletion of a device", call: func(ctx context.Context, gone, other *client) (answer, error) {
			return gone.deleteFrom(ctx, other)
		}},
		{name: "delete_devices", call: func(ctx context.Context, gone, other *client) (answer, error) {
			return other.withPassword(ctx, post, "/delete_devices", object{"devices": []string{gone.DeviceID}})
		}},
		{name: "a new password", call: func(ctx context.Context, _, other *client) (answer, error) {
			return other.withPassword(ctx, post, "/account/password", object{"new_password": newPassword, "logout_devices": true})
		}},
		{name: "a new password without logout_devices", call: func(ctx context.Context, _, other *client) (answer, error) {
			return other.withPassword(ctx, post, "/account/password", object{"new_password": newPassword})
		}},
		{name: "deactivation", all: true, final: true, call: func(ctx context.Context, gone, _ *client) (answer, error) {
			return gone.withPassword(ctx, post, "/account/deactivate", object{})
		}},
	}
}

// leaving makes a user with the devices GONE and OTHER, for each of whom a message of the sender waits.
func (tr *trial) leaving(ctx context.Context, sender *client) (gone, other *client, err error) {
	if gone, err = tr.register(ctx, "bob", "GONE"); err != nil {
		return nil, nil, err
	}
	if other, err = gone.login(ctx, "OTHER"); err != nil {
		return nil, nil, err
	}
	return gone, other, sender.send(ctx, to(numbered(0), gone, other))
}

// deleteFrom has another device of the same user ask for the deletion of the device.
func (c *client) deleteFrom(ctx context.Context, other *client) (answer, error) {
	return other.withPassword(ctx, http.MethodDelete, "/devices/"+c.DeviceID, object{})
}

// loginAgain signs in under the ID of a deleted device, with the first password that will do.
func (c *client) loginAgain(ctx context.Context) (*client, error) {
	n := c.tr.nobody()
	body := c.loginBody(c.DeviceID)
	err := n.signIn(ctx, "/login", body)
	if err != nil {
		body["password"] = newPassword
		err = n.signIn(ctx, "/login", body)
	}
	return n, err
}

func newDevicesAreReached(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	carol := tr.name("carol")
	// The module knows that there is no such user.
	if err = alice.send(ctx, messages{}.add("@"+carol+":"+tr.setup.ServerName, "*", numbered(0))); err != nil {
		return err
	}
	registered, err := tr.registerAs(ctx, carol, "FIRST")
	if err != nil {
		return err
	}
	if err = alice.send(ctx, to(numbered(0), registered)); err != nil {
		return err
	}
	if err = registered.wantWaiting(ctx, "sent as soon as the user was registered", 1); err != nil {
		return err
	}
	const rounds = 3
	for n := range rounds {
		deviceID := fmt.Sprintf("NEW%d", n)
		// The module knows who is there, and that the new device is not.
		if err = alice.send(ctx, messages{}.add(bob.UserID, "*", numbered(n)).add(bob.UserID, deviceID, numbered(n))); err != nil {
			return err
		}
		device, err := bob.login(ctx, deviceID)
		if err != nil {
			return err
		}
		if err = device.wantNothing(ctx, "sent before the device was there"); err != nil {
			return err
		}
		if err = alice.send(ctx, to(numbered(n), device)); err != nil {
			return err
		}
		if err = device.wantWaiting(ctx, "sent as soon as the device was there", 1); err != nil {
			return err
		}
	}
	return nil
}

func deletedDevicesLeaveNothing(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	for _, way := range deletions() {
		if err = tr.leavesNothing(ctx, way, alice); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	return nil
}

func (tr *trial) leavesNothing(ctx context.Context, way deletion, alice *client) error {
	gone, other, err := tr.leaving(ctx, alice)
	if err != nil {
		return err
	}
	txnID := tr.name("txn")
	if err = gone.sendAs(ctx, txnID, to(numbered(1), alice)); err != nil {
		return err
	}
	a, err := way.call(ctx, gone, other)
	if err == nil {
		err = a.want(http.StatusOK, way.name)
	}
	if err != nil {
		return err
	}
	kept, err := tr.realStore().Devices(ctx, gone.UserID)
	if err != nil {
		return err
	}
	if slices.Contains(kept, gone.DeviceID) || way.all && len(kept) > 0 {
		return fmt.Errorf("when the call has returned, something is kept for the devices %q", kept)
	}
	if a, err = gone.put(ctx, tr.name("txn"), to(numbered(2), alice)); err != nil {
		return err
	}
	if err = a.want(http.StatusUnauthorized, "a request of the deleted device"); err != nil || way.final {
		return err
	}
	again, err := gone.loginAgain(ctx)
	if err != nil {
		return err
	}
	if err = again.wantNothing(ctx, "a device that was made later under the same ID"); err != nil {
		return err
	}
	if err = again.sendAs(ctx, txnID, to(numbered(3), again)); err != nil {
		return err
	}
	return again.wantWaiting(ctx, "the transaction ID of the deleted device", 1)
}

func otherDevicesKeepTheirs(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	for _, way := range deletions() {
		if way.all {
			continue
		}
		gone, other, err := tr.leaving(ctx, alice)
		if err != nil {
			return err
		}
		a, err := way.call(ctx, gone, other)
		if err == nil {
			err = a.want(http.StatusOK, way.name)
		}
		if err != nil {
			return err
		}
		if err = other.wantWaiting(ctx, way.name+" of another device", 1); err != nil {
			return err
		}
	}
	return nil
}

func failedCleanUpsAre5xx(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	for _, way := range deletions() {
		gone, other, err := tr.leaving(ctx, alice)
		if err != nil {
			return err
		}
		works := fail[purgeCall](tr.seam, faulty.ErrFails)
		a, err := way.call(ctx, gone, other)
		works()
		if err != nil {
			return err
		}
		if err = a.wantFault(way.name + " whose clean-up fails"); err != nil {
			return err
		}
	}
	return nil
}

func newDevicesFindNothing(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	gone, other, err := tr.leaving(ctx, alice)
	if err != nil {
		return err
	}
	works := fail[purgeCall](tr.seam, faulty.ErrFails)
	defer works()
	if _, err = deletions()[0].call(ctx, gone, other); err != nil {
		return err
	}
	if err = tr.wantDevices(ctx, gone.UserID, other.DeviceID); err != nil {
		return fmt.Errorf("after a logout whose clean-up failed: %w", err)
	}
	a, err := other.do(ctx, http.MethodPost, "/login", gone.loginBody(gone.DeviceID))
	if err != nil {
		return err
	}
	if err = a.wantFault("signing in while what is left of the device can't be cleared away"); err != nil {
		return err
	}
	if err = tr.wantDevices(ctx, gone.UserID, other.DeviceID); err != nil {
		return fmt.Errorf("after a sign-in that failed: %w", err)
	}
	works()
	again, err := gone.loginAgain(ctx)
	if err != nil {
		return err
	}
	return again.wantNothing(ctx, "a device that was made under the ID of a deleted one")
}

func deletionsOvertakeRequests(ctx context.Context, tr *trial) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	gone, other, err := tr.leaving(ctx, alice)
	if err != nil {
		return err
	}
	txnID, body := tr.name("txn"), []byte(`{"messages":{"`+alice.UserID+`":{"FIRST":{"n":1}}}}`)
	request, err := gone.announce(ctx, http.MethodPut, putPath(messageType, txnID), int64(len(body)))
	if err != nil {
		return err
	}
	defer request.giveUp()
	select {
	case <-request.asked:
	default:
		a, err := request.answer(ctx)
		return errors.Join(err, fmt.Errorf("a request is answered before its body has come: %v", a))
	}
	a, err := deletions()[0].call(ctx, gone, other)
	if err == nil {
		err = a.want(http.StatusOK, "logout")
	}
	if err == nil {
		err = request.send(body)
	}
	if err != nil {
		return err
	}
	if a, err = request.answer(ctx); err != nil {
		return err
	}
	if a.Status == http.StatusOK {
		return errors.New("a request whose device was deleted before its body came is answered 200")
	}
	if err = alice.wantNothing(ctx, "of a request whose device was deleted before its body came"); err != nil {
		return err
	}
	again, err := gone.loginAgain(ctx)
	if err != nil {
		return err
	}
	if err = again.sendAs(ctx, txnID, to(numbered(2), alice)); err != nil {
		return err
	}
	return alice.wantWaiting(ctx, "of the next device of that ID, under the same transaction ID", 1)
}
