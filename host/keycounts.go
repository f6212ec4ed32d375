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

// keyCounts knows what each /sync tells of the keys that others may claim of a device: how many one-time keys there are, and what else the
// host says with that. The host changes them where keys are uploaded or claimed, and where a device ends
// (userapi/storage/shared/storage.go), and nowhere else.
type keyCounts struct {
	mu       sync.Mutex
	known    *simplelru.LRU[string, map[string]userapi.QueryOneTimeKeysResponse] // by user ID and device ID
	underWay map[string]int                                                      // changes, by user ID
	changes  int                                                                 // that have ended
}

func newKeyCounts() (*keyCounts, error) {
	known, err := simplelru.NewLRU[string, map[string]userapi.QueryOneTimeKeysResponse](keyCountsKept, nil)
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

func (k *keyCounts) lookUp(userID, deviceID string) (counted userapi.QueryOneTimeKeysResponse, changes int, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	devices, _ := k.known.Get(userID)
	counted, known = devices[deviceID]
	return counted, k.changes, known
}

func (k *keyCounts) learn(userID, deviceID string, counted userapi.QueryOneTimeKeysResponse, changes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changes != changes || k.underWay[userID] > 0 {
		return
	}
	devices, ok := k.known.Get(userID)
	if !ok {
		devices = make(map[string]userapi.QueryOneTimeKeysResponse)
		k.known.Add(userID, devices)
	}
	devices[deviceID] = counted
}

// countedKeys answers with what is known, and asks the host for the rest.
type countedKeys struct {
	userapi.UserInternalAPI
	counts *keyCounts
}

func (c countedKeys) QueryOneTimeKeys(ctx context.Context, req *userapi.QueryOneTimeKeysRequest, res *userapi.QueryOneTimeKeysResponse) error {
	counted, changes, known := c.counts.lookUp(req.UserID, req.DeviceID)
	if known {
		*res = copyOf(counted)
		return nil
	}
	if err := c.UserInternalAPI.QueryOneTimeKeys(ctx, req, res); err != nil || res.Error != nil {
		return err
	}
	c.counts.learn(req.UserID, req.DeviceID, copyOf(*res), changes)
	return nil
}

// copyOf returns an answer whose counts are its own.
func copyOf(counted userapi.QueryOneTimeKeysResponse) userapi.QueryOneTimeKeysResponse {
	counted.Count.KeyCount = maps.Clone(counted.Count.KeyCount)
	return counted
}
