package announcements_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/examples/announcements"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/positions"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// database is a test's database, with transactions as the host has them: one at a time on SQLite.
type database struct {
	*sql.DB
	transact announcements.Transact
	postgres bool
}

// awaitWaiter returns once somebody waits for the transaction, which on SQLite everybody does who writes.
func (db database) awaitWaiter(t *testing.T, tx *sql.Tx) {
	for waits := !db.postgres; !waits && t.Context().Err() == nil; {
		row := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))`)
		if err := row.Scan(&waits); err != nil {
			t.Error(err)
			return
		}
	}
}

func onEach(t *testing.T, test func(t *testing.T, db database)) {
	t.Run("postgres", func(t *testing.T) {
		db := testdb.Postgres(t)(t).DB()
		test(t, database{db, func(f func(*sql.Tx) error) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			if err = f(tx); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		}, true})
	})
	t.Run("sqlite", func(t *testing.T) {
		db := testdb.SQLite(t)(t).DB()
		test(t, database{db, sqlite.NewWriter(db).Transact, false})
	})
}

func (db database) open(t *testing.T) *announcements.Store {
	t.Helper()
	s, err := announcements.Open(t.Context(), db.DB, db.transact)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// chain is one device that follows next_batch.
type chain struct {
	*testing.T
	registry *positions.Registry
	token    string
}

func newChain(t *testing.T, s *announcements.Store) *chain {
	return newLimitedChain(t, s, positions.Limits{})
}

func newLimitedChain(t *testing.T, s *announcements.Store, limits positions.Limits) *chain {
	t.Helper()
	stream := s.Stream()
	stream.Limits = limits
	registry, err := positions.NewRegistry(stream)
	if err != nil {
		t.Fatal(err)
	}
	return &chain{t, registry, "s1"}
}

// next returns the IDs in the next response.
func (c *chain) next() (ids []string) {
	c.Helper()
	request := c.registry.Begin(types.Device{UserID: "@bob:x", DeviceID: "PHONE"}, positions.ParseToken(c.token))
	defer request.End()
	news, err := request.Read(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	c.token = news.NextBatch("s1")
	for _, part := range news.Parts {
		var content struct{ Events []struct{ ID string } }
		if err = json.Unmarshal(part.JSON, &content); err != nil {
			c.Fatal(err)
		}
		for _, e := range content.Events {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

func (c *chain) want(ids ...string) {
	c.Helper()
	if got := c.next(); !slices.Equal(got, ids) {
		c.Fatalf("got %q, want %q", got, ids)
	}
}

func post(t *testing.T, s *announcements.Store, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.Post(t.Context(), id, "the text of "+id); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEachOnceAlongTheChain(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.open(t)
		early := newChain(t, s)
		early.want()
		post(t, s, "a", "b", "a")
		early.want("a", "b")
		early.want()
		again := db.open(t) // as after a restart
		late := newChain(t, again)
		late.want("a", "b")
		post(t, again, "c")
		late.want("c")
		early.registry = late.registry
		early.want("c")
	})
}

func TestLimitsAlongTheChain(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.open(t)
		post(t, s, "a", "b", "c", "d", "e")
		for limits, each := range map[positions.Limits]int{{Items: 2}: 2, {Items: 5}: 5, {Bytes: 1}: 1} {
			c := newLimitedChain(t, s, limits)
			for ids := []string{"a", "b", "c", "d", "e"}; len(ids) > 0; ids = ids[min(each, len(ids)):] {
				c.want(ids[:min(each, len(ids))]...)
			}
			c.want()
		}
	})
}

func TestAnotherTextNeedsAnotherID(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.open(t)
		post(t, s, "a")
		if err := s.Post(t.Context(), "a", "another text"); !errors.Is(err, announcements.ErrTaken) {
			t.Errorf("the error is %v", err)
		}
		newChain(t, s).want("a")
	})
}

// Announcements that are posted at once become visible in the order of their positions: a reader in between misses none.
func TestVisibleInTheOrderOfPositions(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		const posters, each = 6, 25
		s := db.open(t)
		c := newChain(t, s)
		var posting sync.WaitGroup
		var done atomic.Bool
		for p := range posters {
			posting.Go(func() {
				for n := range each {
					if err := s.Post(context.Background(), fmt.Sprintf("%d-%d", p, n), "text"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		go func() {
			posting.Wait()
			done.Store(true)
		}()
		seen := map[string]int{}
		for last := false; !last; {
			last = done.Load()
			for _, id := range c.next() {
				seen[id]++
			}
		}
		for _, id := range c.next() {
			seen[id]++
		}
		if len(seen) != posters*each {
			t.Errorf("%d were seen, want %d", len(seen), posters*each)
		}
		for id, times := range seen {
			if times != 1 {
				t.Errorf("%s was seen %d times", id, times)
			}
		}
	})
}

// A commit whose answer is lost may have been done. Whether it was is found out before anybody is told of a position.
func TestCommitInDoubt(t *testing.T) {
	lost := errors.New("the connection was lost")
	for name, done := range map[string]bool{"done": true, "not done": false} {
		t.Run(name, func(t *testing.T) {
			onEach(t, func(t *testing.T, db database) {
				real, fails := db.transact, false
				db.transact = func(f func(*sql.Tx) error) error {
					if !fails {
						return real(f)
					}
					if done {
						return errors.Join(real(f), lost)
					}
					return real(func(tx *sql.Tx) error { return errors.Join(f(tx), lost) })
				}
				s := db.open(t)
				c := newChain(t, s)
				post(t, s, "a")
				c.want("a")
				fails = true
				if err := s.Post(t.Context(), "b", "the text of b"); !errors.Is(err, lost) {
					t.Fatalf("the error is %v", err)
				}
				fails = false
				if done {
					c.want("b")
				} else {
					c.want()
				}
				post(t, s, "b", "c") // as somebody without an answer does
				if done {
					c.want("c")
				} else {
					c.want("b", "c")
				}
			})
		})
	}
}

// A commit whose answer is lost may be done later. Nobody waits for that, and then it is found.
func TestCommitDoneLater(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		real, later, lost := db.transact, false, errors.New("the connection was lost")
		held, done := make(chan struct{}), make(chan error)
		db.transact = func(f func(*sql.Tx) error) error {
			if !later {
				return real(f)
			}
			begun := make(chan struct{})
			go func() {
				done <- real(func(tx *sql.Tx) error {
					err := f(tx)
					close(begun)
					<-held
					return err
				})
			}()
			<-begun
			return lost
		}
		s := db.open(t)
		c := newChain(t, s)
		post(t, s, "a")
		later = true
		if err := s.Post(t.Context(), "b", "the text of b"); !errors.Is(err, lost) {
			t.Fatalf("the error is %v", err)
		}
		later = false
		c.want("a")
		close(held)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		c.want("b")
		post(t, s, "b", "c")
		c.want("c")
	})
}

// What an earlier process left under way is known once the store is open.
func TestOpenWaitsForAnEarlierProcess(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		c := newChain(t, db.open(t))
		c.want()
		early, ended := make(chan struct{}), make(chan error)
		go func() {
			ended <- db.transact(func(tx *sql.Tx) error {
				_, err := tx.Exec(`UPDATE announcements_position SET last = 7`)
				if err == nil {
					_, err = tx.Exec(`INSERT INTO announcements (position, id, posted_at, body) VALUES (7, 'a', 0, 'text')`)
				}
				close(early)
				db.awaitWaiter(t, tx)
				return err
			})
		}()
		<-early
		c.registry = newChain(t, db.open(t)).registry
		c.want("a")
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
}

// Positions stay ahead of what clients have from before the database was restored.
func TestRestoredDatabase(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.open(t)
		c := newChain(t, s)
		post(t, s, "a", "b", "c")
		c.want("a", "b", "c")
		for _, statement := range []string{`DELETE FROM announcements`, `UPDATE announcements_position SET last = 0`} {
			if _, err := db.Exec(statement); err != nil {
				t.Fatal(err)
			}
		}
		restored := db.open(t)
		post(t, restored, "d", "e")
		c.registry = newChain(t, restored).registry
		c.want("d", "e")
	})
}

// A clock that is set back does not move positions back.
func TestClockBehind(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		db.open(t)
		ahead := time.Now().Add(time.Hour).UnixMicro()
		if _, err := db.Exec(`UPDATE announcements_position SET last = $1`, ahead); err != nil {
			t.Fatal(err)
		}
		s := db.open(t)
		c := newChain(t, s)
		c.want()
		post(t, s, "a", "b")
		c.want("a", "b")
		if want := fmt.Sprintf("s1.announcements-%d", ahead+2); c.token != want {
			t.Errorf("the token is %s, want %s", c.token, want)
		}
	})
}

// A database that can't be read is an error: the items at any time, and the last position while a commit is in doubt.
func TestUnreadable(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		real, fails, lost := db.transact, false, errors.New("the connection was lost")
		db.transact = func(f func(*sql.Tx) error) error {
			err := real(f)
			if fails {
				err = errors.Join(err, lost)
			}
			return err
		}
		s := db.open(t)
		post(t, s, "a")
		c := newChain(t, s)
		wantError := func(without string) {
			t.Helper()
			if _, err := db.Exec("ALTER TABLE " + without + " RENAME TO away"); err != nil {
				t.Fatal(err)
			}
			request := c.registry.Begin(types.Device{UserID: "@bob:x"}, positions.Token{})
			defer request.End()
			if news, err := request.Read(t.Context()); err == nil || news.Parts != nil {
				t.Errorf("without %s: %+v, %v", without, news, err)
			}
			if _, err := db.Exec("ALTER TABLE away RENAME TO " + without); err != nil {
				t.Fatal(err)
			}
		}
		wantError("announcements")
		fails = true
		if err := s.Post(t.Context(), "b", "text"); !errors.Is(err, lost) {
			t.Fatalf("the error is %v", err)
		}
		wantError("announcements_position")
		c.want("a", "b")
	})
}

func TestServePut(t *testing.T) {
	onEach(t, func(t *testing.T, db database) {
		s := db.open(t)
		woken := 0
		put := func(id, body string) (int, spec.MatrixErrorCode) {
			req := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(body))
			res := s.ServePut(req, id, func() { woken++ })
			failure, _ := res.JSON.(spec.MatrixError)
			return res.Code, failure.ErrCode
		}
		for _, test := range []struct {
			id, body string
			code     int
			errCode  spec.MatrixErrorCode
		}{
			{"", `{"body":"a"}`, 400, "M_INVALID_PARAM"},
			{strings.Repeat("i", 256), `{"body":"a"}`, 400, "M_INVALID_PARAM"},
			{"\xff", `{"body":"a"}`, 400, "M_INVALID_PARAM"},
			{"a\x00", `{"body":"a"}`, 400, "M_INVALID_PARAM"},
			{"a", ``, 400, "M_NOT_JSON"},
			{"a", `{"body":"a"`, 400, "M_NOT_JSON"},
			{"a", "{\"body\":\"\xff\"}", 400, "M_NOT_JSON"},
			{"a", `[]`, 400, "M_BAD_JSON"},
			{"a", `{"body":1}`, 400, "M_BAD_JSON"},
			{"a", `{"body":"\u0000"}`, 400, "M_BAD_JSON"},
			{"a", `{}`, 400, "M_MISSING_PARAM"},
			{"a", `null`, 400, "M_MISSING_PARAM"},
			{"a", `{"body":""}`, 400, "M_MISSING_PARAM"},
			{"a", `{"body":"` + strings.Repeat("x", 16<<10+1) + `"}`, 413, "M_TOO_LARGE"},
			{"a", strings.Repeat(" ", 1<<20), 413, "M_TOO_LARGE"},
		} {
			if code, errCode := put(test.id, test.body); code != test.code || errCode != test.errCode {
				t.Errorf("%.20q %.20q: got %d %s, want %d %s", test.id, test.body, code, errCode, test.code, test.errCode)
			}
		}
		c := newChain(t, s)
		if c.want(); woken != 0 {
			t.Errorf("what was refused woke %d times", woken)
		}
		for range 2 {
			if code, errCode := put("a", `{"body":"`+strings.Repeat("\\u0001", 16<<10)+`"}`); code != 200 {
				t.Errorf("got %d %s", code, errCode)
			}
		}
		if code, errCode := put("a", `{"body":"another"}`); code != 400 || errCode != "M_INVALID_PARAM" {
			t.Errorf("another text: %d %s", code, errCode)
		}
		if c.want("a"); woken != 3 {
			t.Errorf("woken %d times", woken)
		}
		if _, err := db.Exec(`DROP TABLE announcements`); err != nil {
			t.Fatal(err)
		}
		if code, errCode := put("b", `{"body":"b"}`); code != 503 || errCode != "M_UNKNOWN" || woken != 4 {
			t.Errorf("without the table: %d %s, woken %d times", code, errCode, woken)
		}
	})
}
