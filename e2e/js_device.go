package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// JSDevice is a device that encrypts by matrix-js-sdk, as Element does: the library follows /sync, shares keys and uploads them by itself.
type JSDevice struct {
	*Client // the same device, for what the library has no part in
	program *jsProgram
	name    string
}

// jsPatience is what a command may take. A step of a verification waits for a minute at most.
const jsPatience = 90 * time.Second

// NewJSDevice signs a device of a user in, and takes it online.
func NewJSDevice(t testing.TB, p *jsProgram, user *Client, device id.DeviceID) *JSDevice {
	t.Helper()
	c := newClient(t, user.server).as(user.UserID, device, "")
	d := &JSDevice{c, p, fmt.Sprintf("%s %s", user.UserID, device)}
	d.must(t, "login", object{"url": d.server.URL, "user": d.UserID, "password": password, "deviceID": device}, &c.AccessToken)
	d.must(t, "online", nil, nil)
	return d
}

func (d *JSDevice) String() string { return d.name }

func (d *JSDevice) do(ctx context.Context, command string, args object, result any) error {
	ctx, cancel := context.WithTimeout(ctx, jsPatience)
	defer cancel()
	if err := d.program.do(ctx, d.name, command, args, result); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	return nil
}

// must lets the device do something that works.
func (d *JSDevice) must(t testing.TB, command string, args object, result any) {
	t.Helper()
	if err := d.do(t.Context(), command, args, result); err != nil {
		t.Fatal(err)
	}
}

// Offline ends the device's client. What it knows is on its disk.
func (d *JSDevice) Offline(t testing.TB) { t.Helper(); d.must(t, "offline", nil, nil) }

// Online starts a client with what is on the device's disk.
func (d *JSDevice) Online(t testing.TB) { t.Helper(); d.must(t, "online", nil, nil) }

// jsState is what a device has read and heard so far.
type jsState struct {
	Read   int               // messages of rooms
	Unread map[string]string // the reason for each that could not be decrypted so far, by event ID
	Heard  int               // messages to the device that are counted
	Faults []string          // such as a gap between those
}

func (d *JSDevice) state(ctx context.Context) (s jsState, err error) {
	err = d.do(ctx, "state", nil, &s)
	return s, err
}

// is asks the device whether something is so.
func (d *JSDevice) is(t testing.TB, command string, args object) (so bool) {
	t.Helper()
	d.must(t, command, args, &so)
	return so
}

// addresses returns the devices as the program takes them.
func addresses(devices []*JSDevice) [][2]string {
	out := make([][2]string, len(devices))
	for i, d := range devices {
		out[i] = [2]string{d.UserID.String(), d.DeviceID.String()}
	}
	return out
}
