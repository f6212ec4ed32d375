package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Whatever a client makes of the part behind the dot, the host takes the token, and its own part of it alone. What is not written as the server
// writes it stands for no position.
func TestTokensThatClientsMakeUp(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := StartServer(t, b, Options{Announcements: true})
		admin, alice, bob := RegisterAdmin(t, s), Register(t, s, "alice"), Register(t, s, "bob")
		_, before := bob.settleAnnounced(t, "")
		announce(t, admin, "a", "b")
		_, after := bob.settleAnnounced(t, before)
		sendNumbered(t, alice, bob, 0, 1)
		host, part := hostPart(after), furtherPart(after)
		number := strings.TrimPrefix(part, "announcements-")
		var others []string
		for n := range 40 {
			others = append(others, fmt.Sprintf("other%d-%d", n, n))
		}
		const huge = 1 << 19 // net/http takes a request line of 1 MiB
		for suffix, known := range map[string]bool{
			part:                                   true,
			part + ".":                             true,
			"." + part:                             true,
			"dl-0-2." + part:                       true,
			part + ".announcements-0":              true,
			"announcements-9223372036854775807":    true,
			part + "." + strings.Join(others, "."): true,
			strings.Repeat(part+".", 10_000):       true,
			part + strings.Repeat(".", huge):       true,
			strings.Repeat("a", huge) + "." + part: true,
			"":                                     false, "announcements": false, "announcements-": false, "announcements-\x00": false,
			"announcements--" + number:                   false,
			"announcements-+" + number:                   false,
			"announcements-0" + number:                   false,
			"announcements- " + number:                   false,
			"announcements-9223372036854775808":          false,
			"announcements-" + strings.Repeat("9", huge): false,
			"Announcements-" + number:                    false,
			"announcements-0." + part:                    false,
			strings.Join(others, ".") + "." + part:       false, // beyond the parts that a token has
		} {
			res := bob.Sync(t, Sync{Since: host + "." + suffix, Timeout: longPoll})
			what := fmt.Sprintf("since with %.60q of %d bytes", suffix, len(suffix))
			if known {
				wantAnnounced(t, what, res.announced())
			} else {
				wantAnnounced(t, what, res.announced(), "a", "b")
			}
			wantNumbers(t, numbers(t, res.Events()), 0, 1)
			if next := furtherPart(res.NextBatch); next != part && !strings.HasPrefix(next, part+".other0-0.") || len(next) > 2000 {
				t.Errorf("%s: next_batch is %.3000s", what, res.NextBatch)
			}
		}
		for _, since := range []string{host + "%2E" + part, "." + part, "S" + host[1:] + "." + part, strings.Replace(after, ".", "_.", 1)[1:]} {
			if _, a := bob.TrySync(t.Context(), Sync{Since: since}); a.Status != http.StatusBadRequest || a.ErrCode != "M_INVALID_PARAM" {
				t.Errorf("since %q: want 400 M_INVALID_PARAM, got %v", since, a)
			}
		}
	})
}

// Clients of one device, each of which gives up now and then and goes on from a token whose answer it lost, are all told of everything once
// and in the same order, while several post.
func TestAnnouncementsToClientsThatLoseAnswers(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		const clients, posters, each = 8, 3, 20
		s := StartServer(t, b, Options{Announcements: true})
		admin, bob := RegisterAdmin(t, s), Register(t, s, "bob")
		_, start := bob.settleAnnounced(t, "")
		var posting, following sync.WaitGroup
		var got [clients][]string
		for c := range clients {
			following.Go(func() {
				since := start
				for n := 0; !slices.Contains(got[c], "last"); n++ {
					ctx, cancel := context.WithCancel(t.Context())
					if n%3 == c%3 {
						ctx, cancel = context.WithTimeout(ctx, time.Duration(n%20)*time.Millisecond)
					}
					res, a := bob.TrySync(ctx, Sync{Since: since, Timeout: longPoll})
					gaveUp := ctx.Err() != nil
					cancel()
					switch {
					case res == nil && !gaveUp:
						t.Errorf("want 200, got %v", a)
						return
					case res == nil || n%5 == c%5: // or the answer is lost
						continue
					case res.Elapsed >= longPoll:
						t.Errorf("client %d was not woken", c)
						return
					}
					got[c], since = append(got[c], res.announced()...), res.NextBatch
				}
			})
		}
		for p := range posters {
			posting.Go(func() {
				for n := range each {
					id := fmt.Sprintf("%d-%d", p, n)
					if a := admin.Announce(t, id, id); a.Status != http.StatusOK {
						t.Errorf("posting %s: want 200, got %v", id, a)
					}
				}
			})
		}
		posting.Wait()
		announce(t, admin, "last")
		following.Wait()
		ids, _ := bob.settleAnnounced(t, start)
		if distinct := len(slices.Compact(slices.Sorted(slices.Values(ids)))); distinct != posters*each+1 {
			t.Errorf("%d were announced, want %d", distinct, posters*each+1)
		}
		for c := range clients {
			wantAnnounced(t, fmt.Sprintf("client %d", c), got[c], ids...)
		}
	})
}

// Who holds the announcements' lock holds up those who post, and no /sync, even once somebody has given up posting.
func TestAnnouncementsBehindALock(t *testing.T) {
	s := StartServer(t, Postgres, Options{Announcements: true}) // on SQLite the lock is the host's as well
	admin, alice, bob := RegisterAdmin(t, s), Register(t, s, "alice"), Register(t, s, "bob")
	_, since := bob.settleAnnounced(t, "")
	withDatabase(t, s, func(db *sql.DB) {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() //nolint:errcheck
		if _, err = tx.Exec(`UPDATE announcements_position SET last = last`); err != nil {
			t.Fatal(err)
		}
		waits := func() (waits bool) {
			row := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))`)
			if err := row.Scan(&waits); err != nil {
				t.Fatal(err)
			}
			return waits
		}
		ctx, giveUp := context.WithCancel(t.Context())
		defer giveUp()
		posted := make(chan Answer)
		go func() {
			target := s.URL + "/_dendrite/admin/announcements/a"
			posted <- admin.do(ctx, http.MethodPut, target, mustJSON(object{"body": "the text of a"}))
		}()
		eventually(t, "the post waits for the lock", func() (bool, any) { return waits(), nil })
		giveUp()
		if a := <-posted; a.Err == nil {
			t.Errorf("the post was answered with %v", a)
		}
		eventually(t, "the post was given up", func() (bool, any) { return !waits(), nil })
		sendNumbered(t, alice, bob, 0, 1)
		res := bob.Sync(t, Sync{Since: since, Timeout: longPoll})
		wantAnnounced(t, "behind the lock", res.announced())
		wantNumbers(t, numbers(t, res.Events()), 0, 1)
		since = res.NextBatch
	})
	announce(t, admin, "a")
	ids, _ := bob.settleAnnounced(t, since)
	wantAnnounced(t, "after it", ids, "a")
}
