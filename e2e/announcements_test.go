package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// A new device is told of everything, and then of each new announcement once, at once where its /sync waits.
func TestAnnouncements(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Announcements: true})
		admin, bob := RegisterAdmin(t, s), Register(t, s, "bob")
		laptop := bob.Login(t, s, "LAPTOP")
		_, early := laptop.settleAnnounced(t, "")
		announce(t, admin, "a", "b", "c")
		res := bob.Sync(t, Sync{})
		wantAnnounced(t, "without since", res.announced(), "a", "b", "c")
		wantAnnounced(t, "without since again", bob.Sync(t, Sync{}).announced(), "a", "b", "c")
		if first := res.Announcements.Events[0]; first.Body != "the text of a" || time.Since(time.UnixMilli(first.PostedAt)).Abs() > time.Hour {
			t.Errorf("got %+v", first)
		}
		ids, since := bob.settleAnnounced(t, res.NextBatch)
		wantAnnounced(t, "with its token", ids)
		wantBlocks(t, bob, since)
		ids, early = laptop.settleAnnounced(t, early)
		wantAnnounced(t, "a device that was there before", ids, "a", "b", "c")

		for n := range 5 {
			id := fmt.Sprintf("wakes%d", n)
			var other *SyncResponse
			res = duringSync(t, bob, Sync{Since: since, Timeout: longPoll}, func() {
				other = duringSync(t, laptop, Sync{Since: early, Timeout: longPoll}, func() { announce(t, admin, id) })
			})
			wantAnnounced(t, "a /sync that waits", res.announced(), id)
			wantAnnounced(t, "another one that waits", other.announced(), id)
			if res.Elapsed >= longPoll || other.Elapsed >= longPoll {
				t.Errorf("they took %s and %s", res.Elapsed, other.Elapsed)
			}
			since, early = res.NextBatch, other.NextBatch
		}
		wantBlocks(t, bob, since)

		s.Restart(t)
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "after a restart", ids)
		announce(t, admin, "d")
		for _, again := range []string{"since before it", "the same token again"} {
			wantAnnounced(t, again, bob.Sync(t, Sync{Since: since, Timeout: longPoll}).announced(), "d")
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// What is more than a response takes comes with the next ones, at once and each once.
func TestAnnouncementsWithinLimits(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Announcements: true})
		admin, bob := RegisterAdmin(t, s), Register(t, s, "bob")
		_, settled := bob.settleAnnounced(t, "")
		follow := func(what, since string, want []string, counts ...int) string {
			t.Helper()
			var got []string
			for _, most := range counts {
				res := bob.Sync(t, Sync{Since: since, Timeout: longPoll})
				if n := len(res.announced()); n != most || res.Elapsed >= longPoll {
					t.Errorf("%s: %d in a response after %s, want %d", what, n, res.Elapsed, most)
				}
				got, since = append(got, res.announced()...), res.NextBatch
			}
			rest, since := bob.settleAnnounced(t, since)
			wantAnnounced(t, what, append(got, rest...), want...)
			wantBlocks(t, bob, since)
			return since
		}
		var want []string
		for n := range 250 {
			want = append(want, fmt.Sprintf("n%d", n))
		}
		announce(t, admin, want...)
		follow("without since", "", want, 100, 100, 50)
		settled = follow("since before them", settled, want, 100, 100, 50)

		var large []string
		for n := range 70 {
			id := fmt.Sprintf("large%d", n)
			if a := admin.Announce(t, id, strings.Repeat("x", 16<<10)); a.Status != http.StatusOK {
				t.Fatal(a)
			}
			large = append(large, id)
		}
		follow("large ones", settled, large, 63, 7) // of 16 KiB each, 63 of which fit 1 MiB
	})
}

// Messages and announcements arrive beside each other, every one once and in order, although the server is killed while they are sent. Who
// posts an announcement repeats what had no answer.
func TestAnnouncementsBesideMessages(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		const messages, posted = 400, 60
		s := StartServer(t, b, Options{Announcements: true})
		admin, alice, bob := RegisterAdmin(t, s), Register(t, s, "alice"), Register(t, s, "bob")
		_, since := bob.settleAnnounced(t, "")
		journal := NewJournal()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var want []string
		for n := range posted {
			want = append(want, fmt.Sprintf("n%d", n))
		}
		var sending sync.WaitGroup
		sending.Go(func() { journal.Send(ctx, t, alice, 0, messages, bob) })
		sending.Go(func() {
			for _, id := range want {
				for a := admin.Announce(t, id, id); a.Status != http.StatusOK; a = admin.Announce(t, id, id) {
					if ctx.Err() != nil || a.Err == nil && a.Status < 500 {
						t.Errorf("posting %s: %v", id, a)
						return
					}
					pause(ctx, s)
				}
			}
		})
		var got []string
		killed := false
		for ctx.Err() == nil && (len(got) < posted || journal.Outstanding(bob.UserID.String()) > 0) {
			res, _ := bob.TrySync(ctx, Sync{Since: since, Timeout: time.Second})
			if res == nil {
				pause(ctx, s)
				continue
			}
			if err := journal.Arrived(bob.UserID.String(), res.Events()); err != nil {
				t.Error(err)
			}
			got, since = append(got, res.announced()...), res.NextBatch
			if !killed && len(got) > posted/3 {
				killed = true
				s.Restart(t)
			}
		}
		sending.Wait()
		journal.Collect(t, bob, since, time.Minute)
		ids, _ := bob.settleAnnounced(t, since)
		wantAnnounced(t, "beside messages", append(got, ids...), want...)
		journal.WantGood(t, "beside announcements")
	})
}

// The position lasts through the other host, and through a server that knows of no stream, which carries it along. Unmodified Dendrite takes the token and drops the
// position: then a device is told of everything once more, and of nothing less.
func TestAnnouncementsAcrossOtherServers(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Announcements: true})
		admin, alice, bob := RegisterAdmin(t, s), Register(t, s, "alice"), Register(t, s, "bob")
		announce(t, admin, "a", "b")
		ids, since := bob.settleAnnounced(t, "")
		wantAnnounced(t, "at first", ids, "a", "b")
		since += ".other-5.yet_another-9223372036854775807"
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "with positions of unknown streams", ids)
		part := furtherPart(since)
		if !strings.HasPrefix(part, "announcements-") || !strings.HasSuffix(part, ".other-5.yet_another-9223372036854775807") {
			t.Fatalf("next_batch is %s", since)
		}
		s.SwitchTo(t, Options{Announcements: true, Host: underTest.Other()})
		wantTokenGood(t, alice, bob, since)
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "on the other host", ids)
		announce(t, admin, "of the other host")
		s.SwitchTo(t, Options{Announcements: true})
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "back from the other host", ids, "of the other host")
		part = furtherPart(since)

		exchange := func(n int) {
			t.Helper()
			sendNumbered(t, alice, bob, n, n+1)
			var events []Event
			events, since = bob.Receive(t, since, 1)
			wantNumbers(t, numbers(t, events), n, n+1)
		}

		s.SwitchTo(t, Options{})
		exchange(0)
		if got := furtherPart(since); got != part {
			t.Fatalf("a server without streams made %q of %q", got, part)
		}
		wantTokenGood(t, alice, bob, since)
		s.SwitchTo(t, Options{Announcements: true})
		announce(t, admin, "c")
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "after a server without streams", ids, "c")
		if !strings.HasSuffix(since, ".other-5.yet_another-9223372036854775807") {
			t.Errorf("next_batch is %s", since)
		}
		wantTokenGood(t, alice, bob, since)

		s.SwitchTo(t, Options{Unmodified: true})
		wantTokenGood(t, alice, bob, since)
		exchange(1)
		if strings.Contains(since, ".") {
			t.Errorf("unmodified Dendrite kept %s", since)
		}
		s.SwitchTo(t, Options{Announcements: true})
		announce(t, admin, "d")
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "after unmodified Dendrite", ids, "a", "b", "of the other host", "c", "d")
		exchange(2)
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "at the end", ids)
		wantBlocks(t, bob, since)
	})
}

// wantTokenGood fails the test unless the token works where the host takes tokens beside /sync: what happens after it is between it and a later
// one, and what happened before is not.
func wantTokenGood(t *testing.T, alice, bob *Client, since string) {
	t.Helper()
	room := joinRoom(t, alice, bob)
	if _, err := alice.SendText(t.Context(), room, "before"); err != nil {
		t.Fatal(err)
	}
	before := bob.Sync(t, Sync{Since: since})
	eventually(t, "the room is in /sync", func() (bool, any) {
		joined := string(before.Rooms.Join[room])
		if !strings.Contains(joined, "before") {
			before = bob.Sync(t, Sync{Since: since})
		}
		return strings.Contains(joined, "before"), joined
	})
	token := hostPart(before.NextBatch) + "." + furtherPart(since) // which unmodified Dendrite leaves out
	if _, err := alice.SendText(t.Context(), room, "after"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "/messages has what came before the token alone", func() (bool, any) {
		later := bob.Sync(t, Sync{Since: token, Timeout: longPoll})
		back := messages(t, bob, room, url.Values{"dir": {"b"}, "from": {token}})
		forth := messages(t, bob, room, url.Values{"dir": {"f"}, "from": {token}})
		between := messages(t, bob, room, url.Values{"dir": {"b"}, "from": {later.NextBatch}, "to": {token}})
		ok := slices.Contains(back, "before") && !slices.Contains(back, "after") && slices.Contains(forth, "after") &&
			!slices.Contains(forth, "before") && slices.Contains(between, "after") && !slices.Contains(between, "before")
		return ok, fmt.Sprint("back ", back, ", forth ", forth, ", between ", between)
	})
	eventually(t, "/keys/changes has who changed between the tokens", func() (bool, any) {
		query := url.Values{"from": {since}, "to": {token}}
		a := bob.do(t.Context(), http.MethodGet, bob.BuildURL(mautrix.ClientURLPath{"v3", "keys", "changes"})+"?"+query.Encode(), nil)
		return a.Status == http.StatusOK && strings.Contains(string(a.Body), alice.UserID.String()), a
	})
}

// messages returns the texts in the room's messages.
func messages(t *testing.T, c *Client, room id.RoomID, query url.Values) (texts []string) {
	t.Helper()
	a := c.do(t.Context(), http.MethodGet, c.BuildURL(mautrix.ClientURLPath{"v3", "rooms", room, "messages"})+"?"+query.Encode(), nil)
	if a.Status != http.StatusOK {
		t.Fatalf("/messages with %v: want 200, got %v", query, a)
	}
	var res struct {
		Chunk []struct {
			Content struct {
				Body string `json:"body"`
			} `json:"content"`
		} `json:"chunk"`
	}
	if err := json.Unmarshal(a.Body, &res); err != nil {
		t.Fatal(err)
	}
	for _, e := range res.Chunk {
		if e.Content.Body != "" {
			texts = append(texts, e.Content.Body)
		}
	}
	return texts
}

// A /sync that can't read the announcements is a 5xx, whether it waits or not, and its since stays good for everything.
func TestAnnouncementsThatCanNotBeRead(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Announcements: true})
		admin, alice, bob := RegisterAdmin(t, s), Register(t, s, "alice"), Register(t, s, "bob")
		_, since := bob.settleAnnounced(t, "")
		announce(t, admin, "a")
		sendNumbered(t, alice, bob, 0, 1)
		rename := func(from, to string) {
			withDatabase(t, s, func(db *sql.DB) {
				if _, err := db.Exec("ALTER TABLE " + from + " RENAME TO " + to); err != nil {
					t.Fatal(err)
				}
			})
		}
		rename("announcements", "announcements_away")
		for _, timeout := range []time.Duration{0, longPoll} {
			if _, a := bob.TrySync(t.Context(), Sync{Since: since, Timeout: timeout}); a.Status < 500 || a.ErrCode != "M_UNKNOWN" {
				t.Errorf("without the table: want 5xx M_UNKNOWN, got %v", a)
			}
		}
		rename("announcements_away", "announcements")
		res := bob.Sync(t, Sync{Since: since, Timeout: longPoll})
		wantAnnounced(t, "the same token", res.announced(), "a")
		wantNumbers(t, numbers(t, res.Events()), 0, 1)
	})
}

// Clients come back with tokens from after the backup: what is announced from then on reaches them.
func TestAnnouncementsOfARestoredBackup(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Announcements: true})
		admin, bob := RegisterAdmin(t, s), Register(t, s, "bob")
		announce(t, admin, "a")
		whileStopped(t, s, func() { backUp(t, s) })
		announce(t, admin, "lost1", "lost2", "lost3")
		ids, since := bob.settleAnnounced(t, "")
		wantAnnounced(t, "before", ids, "a", "lost1", "lost2", "lost3")
		whileStopped(t, s, func() { restore(t, s) })
		announce(t, admin, "b", "c")
		ids, since = bob.settleAnnounced(t, since)
		wantAnnounced(t, "after the restore", ids, "b", "c")
		announce(t, admin, "d")
		ids, _ = bob.settleAnnounced(t, since)
		wantAnnounced(t, "after that", ids, "d")
		ids, _ = bob.settleAnnounced(t, "")
		wantAnnounced(t, "without since", ids, "a", "b", "c", "d")
	})
}

// Only administrators post. The same call again has no effect, and another one needs an ID of its own.
func TestPostingAnnouncements(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Announcements: true})
		admin, bob := RegisterAdmin(t, s), Register(t, s, "bob")
		if a := bob.Announce(t, "mine", "text"); a.Status != http.StatusForbidden || a.ErrCode != "M_FORBIDDEN" {
			t.Errorf("of a user: want 403 M_FORBIDDEN, got %v", a)
		}
		for range 2 {
			announce(t, admin, "a%2Fb")
		}
		if a := admin.Announce(t, "a%2Fb", "another text"); a.Status != http.StatusBadRequest || a.ErrCode != "M_INVALID_PARAM" {
			t.Errorf("another text: want 400 M_INVALID_PARAM, got %v", a)
		}
		if a := admin.Announce(t, "large", strings.Repeat("x", 16<<10+1)); a.Status != http.StatusRequestEntityTooLarge || a.ErrCode != "M_TOO_LARGE" {
			t.Errorf("a large text: want 413 M_TOO_LARGE, got %v", a)
		}
		ids, _ := bob.settleAnnounced(t, "")
		wantAnnounced(t, "in the end", ids, "a/b")
	})
}

// The server that is shipped has no announcements.
func TestWithoutAnnouncements(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		admin := RegisterAdmin(t, s)
		if a := admin.Announce(t, "a", "text"); a.Status != http.StatusNotFound {
			t.Errorf("want 404, got %v", a)
		}
		if res, a := admin.TrySync(t.Context(), Sync{}); res == nil || strings.Contains(res.NextBatch, ".") || strings.Contains(string(a.Body), "announcements") {
			t.Errorf("got %v", a)
		}
		if tableExists(t, s, "announcements") {
			t.Error("there is a table for them")
		}
	})
}
