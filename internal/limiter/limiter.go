// Package limiter holds many rates apart: one for each sender or server.
package limiter

import (
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// kept is how many keys are remembered, some 200 bytes each. A key that was forgotten begins with a full burst again.
const kept = 10_000

// Limiter has a rate of its own for each key. It is safe for concurrent use; nil allows everything.
type Limiter[K comparable] struct {
	limiters  *lru.Cache[K, *rate.Limiter]
	perSecond rate.Limit
	burst     int
}

// New returns a Limiter that allows burst events of a key at once, and perSecond on and on. For a perSecond of
// zero it returns nil.
func New[K comparable](perSecond float64, burst int) (*Limiter[K], error) {
	if perSecond == 0 {
		return nil, nil
	}
	limiters, err := lru.New[K, *rate.Limiter](kept)
	if err != nil {
		return nil, err
	}
	return &Limiter[K]{limiters: limiters, perSecond: rate.Limit(perSecond), burst: burst}, nil
}

// Allow reports whether n events of a key may happen now, all of them or none. More than the burst never may.
func (l *Limiter[K]) Allow(key K, n int) bool {
	if l == nil {
		return true
	}
	own, ok := l.limiters.Get(key)
	if !ok {
		own = rate.NewLimiter(l.perSecond, l.burst)
		if first, found, _ := l.limiters.PeekOrAdd(key, own); found {
			own = first
		}
	}
	return own.AllowN(time.Now(), n)
}

// GiveBack takes back n events of a key that were allowed and did not happen after all.
func (l *Limiter[K]) GiveBack(key K, n int) {
	if l == nil {
		return
	}
	if own, ok := l.limiters.Get(key); ok { // otherwise it begins with a full burst anyway
		own.AllowN(time.Now(), -n) // what goes beyond the burst is cut off by the next call
	}
}
