package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"maunium.net/go/mautrix/id"
)

// A kill of the server at the wrong moment makes the NATS in it forget how far a stream has come, but not how
// far its consumers have: what is published from then on they take for something that they had before. The
// host hears of messages to other servers over such a stream.
func TestStreamForgetsHowFarItCame(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true})
		here.Restart(t) // the host deletes a consumer at a stop if it has made it since the start
		alice := Register(t, here, "alice")
		remotes, messages := make([]*FakeRemote, 20), Messages{}
		for i := range remotes {
			remotes[i] = NewFakeRemote(t, here)
			messages[remotes[i].User("bob")] = map[id.DeviceID]any{"*": object{"n": 0}}
		}
		alice.Send(t, "m.test", messages)
		for _, r := range remotes {
			r.WantNumbers(t, 1, deadline)
		}
		whileStopped(t, here, func() { forgetMessages(t, here, "DendriteOutputSendToDeviceEvent") })
		sendNumbered(t, alice, remotes[0].Device("bob", "FIRST"), 1, 2)
		remotes[0].WantNumbers(t, 2, silentRecovery)
	})
}

// forgetMessages leaves a stream as NATS may leave it when it is killed: with its consumers, and nothing else.
func forgetMessages(t *testing.T, s *Server, stream string) {
	t.Helper()
	kept, err := filepath.Glob(s.path("jetstream/jetstream/*/streams/" + stream + "/msgs/*"))
	if err != nil || len(kept) == 0 {
		t.Fatalf("the stream %s has no files: %v", stream, err)
	}
	for _, file := range kept {
		if err = os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
