package host

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
)

const (
	// ignoredListsKept and ignoredSendersKept bound the memory: at 60 bytes a user ID it is 8 MiB when each list is as long as that.
	ignoredListsKept   = 2048
	ignoredSendersKept = 64
)

// ignoredSenders knows the users whose messages receivers do not want, as the sync API keeps their m.ignored_user_list. It is told of
// each change: the sync API's consumer of account data makes them all (syncapi/consumers/clientapi.go).
type ignoredSenders struct {
	mu      sync.Mutex
	known   *simplelru.LRU[string, []string]
	changes int // that have ended
}

func newIgnoredSenders() (*ignoredSenders, error) {
	known, err := simplelru.NewLRU[string, []string](ignoredListsKept, nil)
	return &ignoredSenders{known: known}, err
}

// change runs update, which changes a user's list. Nothing that was read before it returns is used afterwards.
func (i *ignoredSenders) change(userID string, update func() error) error {
	defer i.forget(userID)
	return update()
}

func (i *ignoredSenders) forget(userID string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.changes++
	i.known.Remove(userID)
}

// of returns the users that a user ignores, in a slice of the caller's own. It asks the snapshot for what it does not know.
func (i *ignoredSenders) of(ctx context.Context, userID string, snapshot ignoreLists) ([]string, error) {
	senders, changes, known := i.lookUp(userID)
	if known {
		return slices.Clone(senders), nil
	}
	ignores, err := snapshot.IgnoresForUser(ctx, userID)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if ignores != nil {
		for sender := range ignores.List {
			senders = append(senders, sender)
		}
	}
	i.learn(userID, senders, changes)
	return slices.Clone(senders), nil
}

// ignoreLists is the part of a snapshot of the sync API's database with the lists.
type ignoreLists interface {
	IgnoresForUser(ctx context.Context, userID string) (*synctypes.IgnoredUsers, error)
}

func (i *ignoredSenders) lookUp(userID string) (senders []string, changes int, known bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	senders, known = i.known.Get(userID)
	return senders, i.changes, known
}

func (i *ignoredSenders) learn(userID string, senders []string, changes int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.changes == changes && len(senders) <= ignoredSendersKept {
		i.known.Add(userID, senders)
	}
}
