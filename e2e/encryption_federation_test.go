//go:build goolm

package e2e

import "testing"

// The two users are on servers of their own. A device of one is offline while it gets more keys than come in one transaction and in
// one /sync; when it is back its user compares emojis with the other one. Then each server is killed in the midst of the talk.
func TestEncryptedTalkAcrossServers(t *testing.T) {
	t.Parallel()
	talkAcrossServers(t, underTest)
}

// The same between servers of both hosts.
func TestEncryptedTalkAcrossHosts(t *testing.T) {
	t.Parallel()
	talkAcrossServers(t, underTest.Other())
}

func talkAcrossServers(t *testing.T, other Host) {
	onBoth(t, func(t *testing.T, b Backend) {
		// The host backs off from a server that was away, also with requests for the keys of a new user.
		here, there := StartPair(t, b, Options{}, Options{Host: other})
		room, devices := NewEncryptedRoom(t, here, there, 1)
		away := devices[3]
		away.Offline()
		room.Talk(t, devices[:3], func() { room.Progress(t, 130) })
		away.Online()
		room.Talk(t, devices[1:3], func() {
			VerifyBySAS(t, devices[0], away)
			VerifyBySAS(t, away, devices[0])
		})
		room.Talk(t, devices, func() {
			// After a kill the host takes ten seconds over requests for keys of the other server, the time that clients allow.
			here.Restart(t)
			there.Restart(t)
			room.Progress(t, 100)
		})
		room.WantAllRead(t, silentRecovery)
	})
}
