package e2e

import (
	"bytes"
	"maps"
	"net/http"
	"testing"

	"maunium.net/go/mautrix"
)

// syncWith sends a /sync with query parameters as they are.
func syncWith(t *testing.T, c *Client, query map[string]string) Answer {
	t.Helper()
	return c.do(t.Context(), http.MethodGet, c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "sync"}, query), nil)
}

// Nobody reads or deletes what waits for another user: not with a device of the same ID, not with the other's sync token, not by naming
// the other, and not by deleting a device of that ID.
func TestOthersQueuesAreOutOfReach(t *testing.T) {
	const waiting = 5
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		db := s.OpenDatabase(t)
		alice, bob, mallory := Register(t, s, "alice"), Register(t, s, "bob"), Register(t, s, "mallory")
		if mallory.DeviceID != bob.DeviceID {
			t.Fatalf("want devices of one ID, got %s and %s", mallory.DeviceID, bob.DeviceID)
		}
		since := bob.Settle(t, "")
		for n := range waiting {
			alice.Send(t, "m.test", To(object{"n": n, "body": secretContent}, bob))
		}
		covering := bob.Sync(t, Sync{Since: since}).NextBatch // what bob does not acknowledge
		service := newClient(t, s).as("", "", appServiceToken)
		for name, who := range map[string]*Client{
			"a user": mallory, "a guest": RegisterGuest(t, s), "a service": service, "a service's user": RegisterAppServiceUser(t, s),
		} {
			for _, query := range []map[string]string{
				{}, {"since": since}, {"since": covering}, {"since": withPosition(t, covering, "9000000000000000000")},
			} {
				if a := syncWith(t, who, query); a.Status != http.StatusOK || bytes.Contains(a.Body, []byte(secretContent)) {
					t.Errorf("%s, %v: want 200 without a message, got %v", name, query, a)
				}
				asBob := maps.Clone(query)
				asBob["user_id"], asBob["device_id"] = bob.UserID.String(), bob.DeviceID.String()
				want := http.StatusOK // whoever is no application service has no say in who they are
				if who.AccessToken == appServiceToken {
					want = http.StatusForbidden // bob is none of its users
				}
				stranger := newClient(t, s).as("", "", who.AccessToken)
				if a := syncWith(t, stranger, asBob); a.Status != want || bytes.Contains(a.Body, []byte(secretContent)) {
					t.Errorf("%s as bob, %v: want %d without a message, got %v", name, query, want, a)
				}
			}
		}
		want200(t, mallory, http.MethodDelete, mallory.BuildClientURL("v3", "devices", bob.DeviceID), object{})
		if n := queued(t, db, bob); n != waiting {
			t.Errorf("%d messages wait for bob, want %d", n, waiting)
		}
		events, since := bob.Receive(t, since, waiting)
		wantNumbers(t, numbers(t, events), 0, waiting)
		bob.Settle(t, since)
	})
}

// A transaction ID belongs to one device of one user: another user's device of the same ID may use it too.
func TestTransactionScopeUser(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		alice, mallory, bob := Register(t, s, "alice"), Register(t, s, "mallory"), Register(t, s, "bob")
		txn := unique("txn")
		for range 2 {
			mallory.SendTxn(t, "m.test", txn, To(object{"n": 0}, bob))
			alice.SendTxn(t, "m.test", txn, To(object{"n": 1}, bob))
		}
		events, since := bob.Receive(t, "", 2)
		wantNumbers(t, numbers(t, events), 0, 2)
		bob.Settle(t, since)
	})
}

// An access token that is missing, or that is no device's or not any more, stores, reads and deletes nothing. No answer speaks of a soft
// logout: the host's tokens end with their devices, or for others.
func TestWithoutAGoodToken(t *testing.T) {
	const waiting = 3
	tokens := []struct {
		name, errcode string
		kept          int // of what waits for the device
		end           func(t *testing.T, c *Client) (token string)
	}{
		{"missing", "M_MISSING_TOKEN", waiting, func(*testing.T, *Client) string { return "" }},
		{"made up", "M_UNKNOWN_TOKEN", waiting, func(*testing.T, *Client) string { return "nonsense" }},
		{"replaced", "M_UNKNOWN_TOKEN", waiting, func(t *testing.T, c *Client) string {
			c.Login(t, c.server, c.DeviceID)
			return c.AccessToken
		}},
		{"signed out", "M_UNKNOWN_TOKEN", 0, func(t *testing.T, c *Client) string {
			want200(t, c, http.MethodPost, c.BuildClientURL("v3", "logout"), object{})
			return c.AccessToken
		}},
		{"deactivated", "M_UNKNOWN_TOKEN", 0, func(t *testing.T, c *Client) string {
			want200(t, c, http.MethodPost, c.BuildClientURL("v3", "account", "deactivate"), object{})
			return c.AccessToken
		}},
	}
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		db := s.OpenDatabase(t)
		alice, bob := Register(t, s, "alice"), Register(t, s, "bob")
		for _, token := range tokens {
			gone := Register(t, s, "carol")
			sendNumbered(t, alice, gone, 0, waiting)
			covering := gone.Sync(t, Sync{}).NextBatch
			stranger := newClient(t, s).as("", "", token.end(t, gone))
			for what, a := range map[string]Answer{
				"sending":        stranger.Put(t.Context(), "m.test", unique("txn"), To(object{"n": 0}, bob, gone).Body()),
				"reading":        syncWith(t, stranger, nil),
				"acknowledging":  syncWith(t, stranger, map[string]string{"since": covering}),
				"naming a queue": syncWith(t, stranger, map[string]string{"user_id": gone.UserID.String()}),
			} {
				if a.Status != http.StatusUnauthorized || a.ErrCode != token.errcode || a.Message == "" || bytes.Contains(a.Body, []byte("soft_logout")) {
					t.Errorf("%s, %s: want 401 %s, got %v", token.name, what, token.errcode, a)
				}
			}
			if n := queued(t, db, gone); n != token.kept {
				t.Errorf("%s: %d messages wait for the device, want %d", token.name, n, token.kept)
			}
		}
		bob.WantNothing(t, "")
	})
}
