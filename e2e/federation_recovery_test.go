package e2e

import (
	"net/http"
	"testing"

	"github.com/matrix-org/gomatrixserverlib/spec"
)

// A remote that was away long enough for the host to wait long between its attempts gets what waits for it
// soon after it is back. It need not say that it is, but if it does it has its messages at once.
func TestRemoteComesBack(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true})
		// goAway makes attempts fail, and then be impossible, while messages wait.
		goAway := func(t *testing.T) (*FakeRemote, *Client) {
			remote := NewFakeRemote(t, here)
			remote.Behave(func(*Transaction) Reply { return refuse(http.StatusServiceUnavailable, "M_UNKNOWN") })
			alice, device := Register(t, here, "alice"), remote.Device("bob", "FIRST")
			sendNumbered(t, alice, device, 0, 1)
			remote.AwaitTransactions(t, 3)
			remote.Close(t)
			sendNumbered(t, alice, device, 1, 3)
			remote.Behave(func(*Transaction) Reply { return accept() })
			return remote, alice
		}
		t.Run("with a request", func(t *testing.T) {
			t.Parallel()
			remote, alice := goAway(t)
			remote.Open(t)
			_, err := remote.Client.LookupProfile(t.Context(), spec.ServerName(remote.Name), spec.ServerName(here.name), alice.UserID.String(), "")
			if err != nil {
				t.Fatal(err)
			}
			remote.WantNumbers(t, 3, contactRecovery)
			wantNothingKept(t, here, remote.Name)
		})
		t.Run("silently", func(t *testing.T) {
			t.Parallel()
			remote, _ := goAway(t)
			remote.Open(t)
			remote.WantNumbers(t, 3, silentRecovery)
			wantNothingKept(t, here, remote.Name)
		})
	})
}

// Another request of the host to the remote succeeds while its queue waits for the next attempt. The host
// then forgets that the queue waits; the message arrives all the same.
func TestHostForgetsToTryAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here := StartServer(t, b, Options{Federation: true})
		remote := NewFakeRemote(t, here)
		alice := Register(t, here, "alice")
		remote.Alias(string(joinRoom(t, alice))) // a room of ours, so that nothing else is asked of the remote
		remote.Behave(func(*Transaction) Reply { return refuse(http.StatusServiceUnavailable, "M_UNKNOWN") })
		sendNumbered(t, alice, remote.Device("bob", "FIRST"), 0, 1)
		remote.AwaitTransactions(t, 1)
		// Several times, since the remote can't know when its 503 has been noted.
		for range 10 {
			if _, err := alice.JoinRoom(t.Context(), "#room:"+remote.Name, nil); err != nil {
				t.Fatal(err)
			}
		}
		remote.Behave(func(*Transaction) Reply { return accept() })
		remote.WantNumbers(t, 1, silentRecovery)
		wantNothingKept(t, here, remote.Name)
	})
}
