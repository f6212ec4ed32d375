package e2e

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Announcement is an item of the stream in examples/announcements.
type Announcement struct {
	ID       string `json:"id"`
	PostedAt int64  `json:"posted_ts"`
	Body     string `json:"body"`
}

// Announce posts an announcement.
func (c *Client) Announce(t testing.TB, id, body string) Answer {
	t.Helper()
	target := c.server.URL + "/_dendrite/admin/announcements/" + id
	return c.do(t.Context(), http.MethodPut, target, mustJSON(object{"body": body}))
}

// announce posts announcements with these IDs.
func announce(t testing.TB, admin *Client, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if a := admin.Announce(t, id, "the text of "+id); a.Status != http.StatusOK {
			t.Fatalf("posting %s: want 200, got %v", id, a)
		}
	}
}

// announced returns the IDs of what is announced in the response.
func (r *SyncResponse) announced() (ids []string) {
	for _, a := range r.Announcements.Events {
		ids = append(ids, a.ID)
	}
	return ids
}

// settleAnnounced follows next_batch until nothing is left to tell the client, and returns what was announced on the way.
func (c *Client) settleAnnounced(t testing.TB, since string) (ids []string, next string) {
	t.Helper()
	eventually(t, "/sync has nothing more to tell", func() (bool, any) {
		res := c.Sync(t, Sync{Since: since})
		settled := res.NextBatch == since
		ids, since = append(ids, res.announced()...), res.NextBatch
		return settled, res.NextBatch
	})
	return ids, since
}

// wantAnnounced fails the test unless exactly these were announced, in order.
func wantAnnounced(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: announced were %q, want %q", what, got, want)
	}
}

// furtherPart returns what a token has behind the host's own.
func furtherPart(token string) string {
	_, part, _ := strings.Cut(token, ".")
	return part
}

// hostPart returns the host's own part of a token.
func hostPart(token string) string {
	host, _, _ := strings.Cut(token, ".")
	return host
}
