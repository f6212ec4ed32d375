package e2e

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// request is one that a client sends with its access token.
type request struct {
	name string
	send func(t *testing.T, c *Client) Answer
}

// hotRequests are those for which the server remembers access tokens.
func hotRequests() []request {
	return []request{
		{"sending", func(t *testing.T, c *Client) Answer {
			return c.Put(t.Context(), "m.test", unique("txn"), Messages{}.Body())
		}},
		{"/sync", func(t *testing.T, c *Client) Answer { _, a := c.TrySync(t.Context(), Sync{}); return a }},
	}
}

// wantGood fails the test unless all requests of the client are let in, also when its access token is remembered.
func wantGood(t *testing.T, c *Client) {
	t.Helper()
	for _, r := range append(hotRequests(), hotRequests()...) {
		if a := r.send(t, c); a.Status != http.StatusOK {
			t.Fatalf("%s with a good token: %v", r.name, a)
		}
	}
}

func refused(a Answer) bool {
	return a.Status == http.StatusUnauthorized && a.ErrCode == "M_UNKNOWN_TOKEN"
}

// wantRefused fails the test unless no request of the client is let in.
func wantRefused(t *testing.T, c *Client) {
	t.Helper()
	for _, r := range append(hotRequests(), hotRequests()...) {
		if a := r.send(t, c); !refused(a) {
			t.Errorf("%s with a token that has ended: want 401 M_UNKNOWN_TOKEN, got %v", r.name, a)
		}
	}
}

// hammer sends requests of the client without a pause, over the moment that ended is set, and fails the test if one that was sent
// after it is let in.
func hammer(t *testing.T, c *Client, ended *atomic.Bool) (wait func()) {
	t.Helper()
	const after = 5 // requests of each kind once the token has ended
	var busy, started sync.WaitGroup
	for _, r := range hotRequests() {
		started.Add(1)
		busy.Go(func() {
			for n, first := 0, true; n < after; first = false {
				late := ended.Load()
				a := r.send(t, c)
				if late {
					n++
					if !refused(a) {
						t.Errorf("%s with a token that has ended, among others under way: want 401 M_UNKNOWN_TOKEN, got %v", r.name, a)
					}
				}
				if first {
					started.Done()
				}
			}
		})
	}
	started.Wait()
	return busy.Wait
}

// An access token that is in use ends with the call that ends it, however the host ends it. The user's other device is let in as long
// as its own has not ended, and a new token is good at once.
func TestTokenEndsAtOnce(t *testing.T) {
	t.Parallel()
	ways := append(deletions(), deletion{name: "signing in again", call: func(t *testing.T, _, gone, other *Client) {
		gone.Login(t, other.server, gone.DeviceID)
	}})
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{})
		admin := RegisterAdmin(t, s)
		for _, way := range ways {
			t.Run(way.name, func(t *testing.T) {
				gone := Register(t, s, "bob")
				other := gone.Login(t, s, "OTHER")
				wantGood(t, gone)
				wantGood(t, other)
				var ended atomic.Bool
				wait := hammer(t, gone, &ended)
				way.call(t, admin, gone, other)
				ended.Store(true)
				wantRefused(t, gone)
				wait()
				if way.all {
					wantRefused(t, other)
				} else {
					wantGood(t, other)
				}
				if !way.final {
					wantGood(t, loginWith(t, s, gone, password, newPassword))
				}
				wantRefused(t, gone)
			})
		}

		// Which shows too that the tokens above were remembered. The documentation has how long this lasts.
		t.Run("past the host", func(t *testing.T) {
			gone := Register(t, s, "bob")
			other := gone.Login(t, s, "OTHER")
			wantGood(t, gone)
			if _, err := s.openDatabaseOf(t, "userapi").Exec("DELETE FROM userapi_devices WHERE access_token = $1", gone.AccessToken); err != nil {
				t.Fatal(err)
			}
			wantGood(t, gone)
			want200(t, other, http.MethodPost, other.BuildClientURL("v3", "logout"), object{})
			wantRefused(t, gone)
		})
	})
}
