package e2e

import (
	"slices"
	"testing"
)

// The clients are those of matrix-js-sdk, with its crypto in Rust. Users and devices of one server.
func TestEncryptedJS(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		jsStory(t, s, s)
	})
}

// The two users are on servers of their own.
func TestEncryptedJSAcrossServers(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		// The host backs off from a server that was away, also with requests for the keys of a new user.
		here, there := StartPair(t, b, Options{}, Options{})
		jsStory(t, here, there)
	})
}

// The second user is on a Synapse.
func TestEncryptedJSWithSynapse(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		jsStory(t, here, there)
	})
}

// jsStory is what happens to two users with two devices each. In the end every device can read all that was said.
func jsStory(t *testing.T, here, there *Server) {
	room, devices := NewJSRoom(t, here, there)
	first, second, third, fourth := devices[0], devices[1], devices[2], devices[3]

	// One is offline, while the others talk and two users compare emojis. It comes back with the keys on its disk.
	fourth.Offline(t)
	room.Talk(t, devices[:3], func() {
		room.Progress(t, 10)
		jsVerify(t, first, third)
	})
	fourth.Online(t)
	room.WantAllRead(t)

	// A device is new. Its user compares emojis on it and on an older one, which then gives it the secrets that it asks for, and
	// the keys of what was said before.
	first.must(t, "crossSign", object{"password": password}, nil)
	fresh := NewJSDevice(t, room.program, first.Client, "JSTHIRD")
	room.Add(t, fresh)
	all := append(slices.Clone(devices), fresh)
	room.SayInTurn(t, all...)
	room.Talk(t, devices[1:3], func() {
		jsVerify(t, fresh, first)
		eventually(t, "the new device has the secrets", func() (bool, any) { return fresh.is(t, "hasSecrets", nil), false })
		fresh.must(t, "askForKeys", nil, nil)
		room.Progress(t, 5)
	})
	room.WantAllRead(t)

	// The server is stopped in the midst of the talk, and killed. One more device is offline then.
	room.ByHand = true
	second.Offline(t)
	talkers := []*JSDevice{first, third, fourth, fresh}
	room.Talk(t, talkers, func() {
		room.Progress(t, 8)
		if err := here.Stop(); err != nil {
			t.Error(err)
		}
		here.MustStart(t)
		room.Progress(t, 10)
		here.Restart(t)
		room.Progress(t, 10)
	})
	second.Online(t)
	room.WantAllRead(t)

	// A device signs out while the talk goes on.
	room.Talk(t, talkers[:3], func() {
		room.Remove(fresh)
		fresh.must(t, "logout", nil, nil)
		room.Progress(t, 5)
	})
	room.WantAllRead(t)
}
