package host

import (
	"context"
	"maps"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// keyCountsKept bounds the memory: at some 500 bytes a user it is 8 MiB.
const keyCountsKept = 1 << 14

// keyCounts knows how many one-time keys devices have, of which each /sync tells. The host changes them where keys are uploaded or
// claimed, and where a device ends (userapi/storage/shared/storage.go), and nowhere else.
type keyCounts struct {
	mu       sync.Mutex
	known    *simplelru.LRU[string, map[string]map[string]int] // by user ID, device ID and algorithm
	underWay map[string]int                                    // changes, by user ID
	changes  int                                               // that have ended
}

func newKeyCounts() (*keyCounts, error) {
	known, err := simplelru.NewLRU[string, map[string]map[string]int](keyCountsKept, nil)
	return &keyCounts{known: known, underWay: make(map[string]int)}, err
}

// change runs f, which may change the keys of the users. From its beginning on nothing is used that was counted before it ended: others
// may see what it does before it returns.
func (k *keyCounts) change(f func() error, userIDs ...string) error {
	k.count(userIDs, 1)
	defer k.count(userIDs, -1)
	return f()
}

func (k *keyCounts) count(userIDs []string, change int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes++
	for _, userID := range userIDs {
		k.known.Remove(userID)
		if k.underWay[userID] += change; k.underWay[userID] == 0 {
			delete(k.underWay, userID)
		}
	}
}

func (k *keyCounts) lookUp(userID, deviceID string) (counts map[string]int, changes int, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	devices, _ := k.known.Get(userID)
	counts, known = devices[deviceID]
	return counts, k.changes, known
}

func (k *keyCounts) learn(userID, deviceID string, counts map[string]int, changes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changes != changes || k.underWay[userID] > 0 {
		return
	}
	devices, ok := k.known.Get(userID)
	if !ok {
		devices = make(map[string]map[string]int)
		k.known.Add(userID, devices)
	}
	devices[deviceID] = counts
}

// countedKeys answers with the counts that are known, and asks the host for the others.
type countedKeys struct {
	userapi.UserInternalAPI
	counts *keyCounts
}

func (c countedKeys) QueryOneTimeKeys(ctx context.Context, req *userapi.QueryOneTimeKeysRequest, res *userapi.QueryOneTimeKeysResponse) error {
	counts, changes, known := c.counts.lookUp(req.UserID, req.DeviceID)
	if known {
		res.Count = userapi.OneTimeKeysCount{UserID: req.UserID, DeviceID: req.DeviceID, KeyCount: maps.Clone(counts)}
		return nil
	}
	if err := c.UserInternalAPI.QueryOneTimeKeys(ctx, req, res); err != nil || res.Error != nil {
		return err
	}
	c.counts.learn(req.UserID, req.DeviceID, maps.Clone(res.Count.KeyCount), changes)
	return nil
}
