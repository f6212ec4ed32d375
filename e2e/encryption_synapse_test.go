//go:build goolm

package e2e

import "testing"

// The second user is on a Synapse. The users compare emojis in the midst of the talk, and then this server is killed.
func TestEncryptedTalkWithSynapse(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		room, devices := NewEncryptedRoom(t, here, there, 1)
		room.Talk(t, devices, func() {
			room.Progress(t, 50)
			VerifyBySAS(t, devices[0], devices[3])
			VerifyBySAS(t, devices[2], devices[1])
			here.Restart(t)
			room.Progress(t, 50)
		})
		room.WantAllRead(t, silentRecovery)
	})
}
