package devices_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
)

// users are more than are looked up one by one.
const users = 20

// existing makes users with two devices each, and names the first of each.
func existing(h *host) []devices.Target {
	return slices.DeleteFunc(manyUsers(h, users), func(t devices.Target) bool { return string(t.Content) == "2" })
}

func wantAsked(t *testing.T, h *host, whole, owners int) {
	t.Helper()
	if gotWhole, gotOwners := h.asked(); gotWhole != whole || gotOwners != owners {
		t.Errorf("the host was asked %d and %d times, want %d and %d", gotWhole, gotOwners, whole, owners)
	}
}

func TestDevicesThatWereFoundAreKnown(t *testing.T) {
	d, h := newDirectory(t)
	targets := existing(h)
	for owners := range 2 {
		if r := resolve(t, d, targets...); len(r.Copies) != users || len(r.Missing) != 0 {
			t.Errorf("%d copies, %d missing", len(r.Copies), len(r.Missing))
		}
		wantAsked(t, h, 0, 1-owners)
	}
	// Nothing is known of another one, so it is asked for; then both are known.
	for i := range users {
		targets = append(targets, target(fmt.Sprintf("@user%d:x", i), fmt.Sprint("OTHER", i), "3"))
	}
	for owners := range 2 {
		if r := resolve(t, d, targets[users:]...); len(r.Copies) != users {
			t.Errorf("%d copies", len(r.Copies))
		}
		wantAsked(t, h, 0, 1-owners)
	}
	if r := resolve(t, d, targets...); len(r.Copies) != 2*users {
		t.Errorf("%d copies", len(r.Copies))
	}
	wantAsked(t, h, 0, 0)
}

func TestSomeDevicesDoNotPassForAll(t *testing.T) {
	d, h := newDirectory(t)
	resolve(t, d, existing(h)...)
	h.asked()
	wantCopies(t, resolve(t, d, target("@user1:x", devices.AllDevices, "1")), "@user1:x/D1=1", "@user1:x/OTHER1=1")
	wantAsked(t, h, 1, 0)
	wantCopies(t, resolve(t, d, target("@user2:x", "OTHER2", "1")), "@user2:x/OTHER2=1")
	wantAsked(t, h, 1, 0)
	// Of what does not exist nothing is kept: it may be made at any time.
	for range 2 {
		if r := resolve(t, d, manyUsers(h, 20)...); len(r.Missing) != 20 {
			t.Errorf("%d missing", len(r.Missing))
		}
		wantAsked(t, h, 0, 1)
	}
}

func TestChangeForgetsSomeDevices(t *testing.T) {
	d, h := newDirectory(t)
	targets := existing(h)
	resolve(t, d, targets...)
	h.asked()
	h.set("@user3:x", "OTHER3")
	d.Changed("@user3:x")
	r := resolve(t, d, targets...)
	if len(r.Copies) != 19 || len(r.Missing) != 1 || r.Missing[0].DeviceID != "D3" {
		t.Errorf("%d copies, missing %v", len(r.Copies), r.Missing)
	}
	wantAsked(t, h, 1, 0) // of the one user alone, and now of all its devices
}

func TestSomeDevicesAreNotBelievedDuringAChange(t *testing.T) {
	d, h := newDirectory(t)
	targets := existing(h)
	resolve(t, d, targets...)
	h.asked()
	err := d.Change("@user3:x", func() error {
		resolve(t, d, targets...)
		wantAsked(t, h, 1, 0)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What was known before a change of many users is not taken over by the next look-up of them.
func TestDevicesFromBeforeAChangeAreNotKept(t *testing.T) {
	d, h := newDirectory(t)
	targets := existing(h)
	resolve(t, d, targets...)
	var others []devices.Target
	for i := range users {
		userID, other := fmt.Sprintf("@user%d:x", i), fmt.Sprint("OTHER", i)
		h.set(userID, other)
		d.Changed(userID)
		others = append(others, target(userID, other, "3"))
	}
	if r := resolve(t, d, others...); len(r.Copies) != users {
		t.Errorf("%d copies", len(r.Copies))
	}
	if r := resolve(t, d, targets...); len(r.Copies) != 0 {
		t.Errorf("the copies are %v", copies(r))
	}
}
