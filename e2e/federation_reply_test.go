package e2e

import (
	"net/http"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// However the remote answers a transaction, each message arrives once and in order, and a transaction ID
// never stands for two contents: the remote itself looks at that.
func TestRemoteReplies(t *testing.T) {
	for name, script := range map[string]func(release <-chan struct{}) []Reply{
		"processed, and the answer lost": func(<-chan struct{}) []Reply { return []Reply{processAndDrop()} },
		"processed, and the answer lost twice": func(<-chan struct{}) []Reply {
			return []Reply{processAndDrop(), processAndDrop()}
		},
		"processed, and answered late": func(release <-chan struct{}) []Reply { return []Reply{acceptLate(release)} },
		"processed, late, and the answer lost": func(release <-chan struct{}) []Reply {
			return []Reply{{Process: true, Until: release, Drop: true}}
		},
		"no answer": func(release <-chan struct{}) []Reply { return []Reply{hang(release)} },
		"bad gateway": func(<-chan struct{}) []Reply {
			return []Reply{refuse(http.StatusBadGateway, "M_UNKNOWN")}
		},
		"processed, and an internal error": func(<-chan struct{}) []Reply {
			return []Reply{{Process: true, Status: http.StatusInternalServerError, ErrCode: "M_UNKNOWN"}}
		},
		"bad gateway in words": func(<-chan struct{}) []Reply { return []Reply{refuseByProxy(http.StatusBadGateway)} },
		"too many requests": func(<-chan struct{}) []Reply {
			return []Reply{refuse(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED")}
		},
		// A proxy in front of a remote that is being set up answers everything in this way.
		"not found": func(<-chan struct{}) []Reply {
			return []Reply{refuse(http.StatusNotFound, "M_UNRECOGNIZED")} //nolint:misspell // as the specification has it
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, b Backend) {
				here := SharedFederated(t, b)
				remote := NewFakeRemote(t, here)
				alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
				room := joinRoom(t, alice)
				remote.Join(t, here, room, remote.User("bob"))
				release := make(chan struct{})
				before := len(remote.Transactions()) // the host's own, about the join
				remote.Script(script(release)...)
				sendNumbered(t, alice, device, 0, 3)
				sendRoomMessage(t, alice, room, "first")
				remote.AwaitTransactions(t, before+1)
				sendRoomMessage(t, alice, room, "second")
				sendNumbered(t, alice, device, 3, 5)
				close(release)
				remote.WantNumbers(t, 5, silentRecovery)
				remote.WantTexts(t, silentRecovery, "first", "second")
				wantNothingKept(t, here, remote.Name)
			})
		})
	}
}

// A remote that does not answer holds up no other one, and is not sent a second transaction meanwhile.
func TestSilentRemoteHoldsUpNobody(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		silent, other := NewFakeRemote(t, here), NewFakeRemote(t, here)
		alice, bob := Register(t, here, "alice"), Register(t, here, "bob")
		release := make(chan struct{})
		silent.Script(hang(release))
		sendNumbered(t, alice, silent.Device("carol", "FIRST"), 0, 1)
		silent.AwaitTransactions(t, 1)
		for n := range 20 {
			alice.Send(t, "m.test", To(object{"n": n}, other.Device("dave", "FIRST"), bob))
			sendNumbered(t, alice, silent.Device("carol", "FIRST"), n+1, n+2)
		}
		other.WantNumbers(t, 20, contactRecovery)
		wantNumbers(t, numbers(t, bob.Sync(t, Sync{}).Events()), 0, 20)
		if n := len(silent.Transactions()); n != 1 {
			t.Errorf("want one transaction to the silent remote, got %d", n)
		}
		close(release)
		silent.WantNumbers(t, 21, silentRecovery)
	})
}

// Nor do many: more of them than the server talks to at once.
func TestManySilentRemotes(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true})
		alice := Register(t, here, "alice")
		release := make(chan struct{})
		silent, messages := make([]*FakeRemote, 100), Messages{}
		for i := range silent {
			silent[i] = NewFakeRemote(t, here)
			silent[i].Script(acceptLate(release))
			messages[silent[i].User("bob")] = map[id.DeviceID]any{"*": object{"n": 0}}
		}
		alice.Send(t, "m.test", messages)
		for _, r := range silent {
			r.AwaitTransactions(t, 1)
		}
		other := NewFakeRemote(t, here)
		sendNumbered(t, alice, other.Device("carol", "FIRST"), 0, 1)
		other.WantNumbers(t, 1, contactRecovery)
		close(release)
		for _, r := range silent {
			r.WantNumbers(t, 1, silentRecovery)
		}
	})
}

// A remote that does not answer does not keep the server from stopping.
func TestStopWhileRemoteIsSilent(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		never := make(chan struct{})
		remote.Script(hang(never))
		sendNumbered(t, alice, device, 0, 1)
		remote.AwaitTransactions(t, 1)
		sendNumbered(t, alice, device, 1, 3)
		start := time.Now()
		if err := here.Stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("the stop took %s", took)
		}
		here.MustStart(t)
		remote.WantNumbers(t, 3, silentRecovery)
	})
}

// The server is killed after the remote has processed a transaction and before it could answer: what is
// sent again is known by its message_id.
func TestKilledBeforeTheAnswer(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		never := make(chan struct{})
		remote.Script(acceptLate(never))
		sendNumbered(t, alice, device, 0, 3)
		remote.AwaitTransactions(t, 1)
		sendNumbered(t, alice, device, 3, 5)
		here.Restart(t)
		remote.WantNumbers(t, 5, silentRecovery)
		wantNothingKept(t, here, remote.Name)
		sent := remote.Transactions()
		if string(canonical(sent[0].EDUs[0].Raw)) != string(canonical(sent[1].EDUs[0].Raw)) {
			t.Error("the EDU that had no answer was not sent again as it was")
		}
	})
}

// Many messages to one remote go in few transactions.
func TestWaitingMessagesGoTogether(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		remote := NewFakeRemote(t, here)
		alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
		release := make(chan struct{})
		remote.Script(acceptLate(release))
		sendNumbered(t, alice, device, 0, 1)
		remote.AwaitTransactions(t, 1)
		sendNumbered(t, alice, device, 1, 251)
		start := time.Now()
		close(release)
		remote.WantNumbers(t, 251, deadline)
		t.Logf("250 messages took %s and %d transactions", time.Since(start), len(remote.Transactions())-1)
		if n := len(remote.Transactions()); n > 5 {
			t.Errorf("want the 250 messages that waited in about 3 transactions, got %d", n-1)
		}
	})
}
