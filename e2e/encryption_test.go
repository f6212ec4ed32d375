//go:build goolm

package e2e

import (
	"slices"
	"testing"
)

// Two users with two devices each talk in an encrypted room while their server is killed in the midst of it, and stopped and started.
// Every device can read what every other one says: no key is lost on the way, none comes twice.
func TestEncryptedTalk(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		room, devices := NewEncryptedRoom(t, s, s, 2)
		room.Talk(t, devices, func() {
			room.Progress(t, 100)
			for range 2 {
				s.Restart(t)
				room.Progress(t, 100)
			}
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
			s.MustStart(t)
			room.Progress(t, 100)
		})
		room.WantAllRead(t, deadline)
	})
}

// A device is offline while the others share more keys with it than come in one /sync. When it is back it reads all that it
// has missed. Meanwhile the users compare emojis on two others, and the server is killed.
func TestEncryptedDeviceWasAway(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		room, devices := NewEncryptedRoom(t, s, s, 1)
		away := devices[3]
		away.Offline()
		room.Talk(t, devices[:3], func() {
			room.Progress(t, 130)
			VerifyBySAS(t, devices[1], devices[2])
		})
		if n := queued(t, s.OpenDatabase(t), away.Client); n < 130 {
			t.Errorf("want a key for each of at least 130 messages in the queue, got %d", n)
		}
		s.Restart(t)
		away.Online()
		room.SayInTurn(t, 1, devices...)
		room.WantAllRead(t, deadline)
	})
}

// A device signs in anew. Its user compares emojis on it and on an older one, from which it then requests the keys of all that
// was said before, while the talk goes on.
func TestEncryptedDeviceIsNew(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		room, devices := NewEncryptedRoom(t, s, s, 1)
		room.SayInTurn(t, 5, devices...)
		room.WantAllRead(t, deadline)
		old := devices[0]
		old.CrossSign(t)
		fresh := NewEncryptedDevice(t, old.Login(t, s, "THIRD"))
		fresh.Online()
		fresh.awaitRoom(t, room.ID, old.UserID, devices[2].UserID)
		all := append(slices.Clone(devices), fresh)
		fresh.awaitDevices(t, all)
		room.Add(t, fresh)
		room.SayInTurn(t, 1, all...)
		room.Talk(t, devices[1:3], func() {
			VerifyBySAS(t, fresh, old)
			if n := fresh.RequestKeys(t, old); n < 24 {
				t.Errorf("want a request for each of the 24 messages, got %d", n)
			}
			room.Progress(t, 10)
		})
		room.WantAllRead(t, deadline)
	})
}

// A device with a queue signs out while the talk goes on. The queue is gone with it, and nothing is kept for it any more.
func TestEncryptedDeviceSignsOut(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		db := s.OpenDatabase(t)
		room, devices := NewEncryptedRoom(t, s, s, 1)
		leaver := devices[3]
		room.Talk(t, devices[:3], func() {
			leaver.Offline()
			room.Progress(t, 20)
			if queued(t, db, leaver.Client) == 0 {
				t.Error("nothing was kept for the device that is offline")
			}
			room.Remove(leaver)
			if _, err := leaver.Logout(t.Context()); err != nil {
				t.Error(err)
			}
			if n := queued(t, db, leaver.Client); n > 0 {
				t.Errorf("%d messages are kept for a device that signed out", n)
			}
			room.Progress(t, 30)
		})
		room.WantAllRead(t, deadline)
		if n := queued(t, db, leaver.Client); n > 0 {
			t.Errorf("%d messages are kept for a device that signed out before", n)
		}
	})
}
