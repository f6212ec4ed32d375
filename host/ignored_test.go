package host

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"
)

// ignoreStore is a snapshot of lists, which counts how often it is asked.
type ignoreStore struct {
	lists map[string][]string
	asked int
	err   error
	then  func() // called between the answer and its return
}

func (s *ignoreStore) IgnoresForUser(_ context.Context, userID string) (*synctypes.IgnoredUsers, error) {
	s.asked++
	senders, ok := s.lists[userID]
	if s.then != nil {
		s.then()
	}
	switch {
	case s.err != nil:
		return nil, s.err
	case !ok:
		return nil, sql.ErrNoRows
	}
	list := make(map[string]interface{})
	for _, sender := range senders {
		list[sender] = struct{}{}
	}
	return &synctypes.IgnoredUsers{List: list}, nil
}

type ignoring struct {
	*testing.T
	*ignoredSenders
	store *ignoreStore
}

func newIgnoring(t *testing.T) *ignoring {
	t.Helper()
	senders, err := newIgnoredSenders()
	if err != nil {
		t.Fatal(err)
	}
	return &ignoring{t, senders, &ignoreStore{lists: make(map[string][]string)}}
}

func (i *ignoring) want(userID string, queries int, senders ...string) {
	i.Helper()
	before := i.store.asked
	got, err := i.of(i.Context(), userID, i.store)
	if slices.Sort(got); err != nil || !slices.Equal(got, senders) {
		i.Errorf("%s ignores %v, want %v; %v", userID, got, senders, err)
	}
	if asked := i.store.asked - before; asked != queries {
		i.Errorf("the database was asked %d times, want %d", asked, queries)
	}
	for n := range got {
		got[n] = "@scribbled:x" // the slice is the caller's
	}
}

func (i *ignoring) change(userID string, senders ...string) {
	i.Helper()
	if err := i.ignoredSenders.change(userID, func() error { i.store.lists[userID] = senders; return nil }); err != nil {
		i.Error(err)
	}
}

func TestIgnoredSendersAreReadOnce(t *testing.T) {
	i := newIgnoring(t)
	i.store.lists["@bob:x"] = []string{"@eve:x", "@mallory:x"}
	i.want("@bob:x", 1, "@eve:x", "@mallory:x")
	for range 2 {
		i.want("@bob:x", 0, "@eve:x", "@mallory:x")
	}
	i.want("@carol:x", 1)
	i.want("@carol:x", 0)
}

func TestChangedListCountsAtOnce(t *testing.T) {
	i := newIgnoring(t)
	i.want("@bob:x", 1)
	i.change("@bob:x", "@eve:x")
	i.want("@bob:x", 1, "@eve:x")
	i.change("@bob:x")
	i.want("@bob:x", 1)

	failed := errors.New("after all it was stored")
	err := i.ignoredSenders.change("@bob:x", func() error { i.store.lists["@bob:x"] = []string{"@eve:x"}; return failed })
	if !errors.Is(err, failed) {
		t.Error(err)
	}
	i.want("@bob:x", 1, "@eve:x")
}

func TestListThatChangesWhileItIsReadIsNotKept(t *testing.T) {
	i := newIgnoring(t)
	i.store.then = func() { i.change("@bob:x", "@eve:x") }
	i.want("@bob:x", 1)
	i.store.then = nil
	i.want("@bob:x", 1, "@eve:x")
}

func TestListThatCannotBeRead(t *testing.T) {
	i := newIgnoring(t)
	i.store.err = errors.New("away")
	for range 2 {
		if _, err := i.of(t.Context(), "@bob:x", i.store); !errors.Is(err, i.store.err) {
			t.Error(err)
		}
	}
	i.store.err = nil
	i.want("@bob:x", 1)
}

func TestMemoryOfIgnoredSenders(t *testing.T) {
	i := newIgnoring(t)
	var long []string
	for n := range ignoredSendersKept + 1 {
		long = append(long, fmt.Sprintf("@%03d:x", n))
	}
	i.store.lists["@long:x"], i.store.lists["@most:x"] = long, long[1:]
	for range 2 {
		i.want("@long:x", 1, long...)
	}
	i.want("@most:x", 1, long[1:]...)
	i.want("@most:x", 0, long[1:]...)
	for n := range ignoredListsKept {
		i.want(fmt.Sprintf("@%d:x", n), 1)
	}
	if n := i.known.Len(); n != ignoredListsKept {
		t.Errorf("%d lists are kept", n)
	}
	i.want("@most:x", 1, long[1:]...)
}
