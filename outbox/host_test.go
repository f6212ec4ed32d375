package outbox_test

import (
	"context"
	"sync"
	"time"
)

// host is the host's federation sender. Its rings are heard by nobody unless the test says by whom.
type host struct {
	mu      sync.Mutex
	rings   map[string]int
	ringing map[string]int // rings that have not returned
	most    int            // rings at the same time for one destination
	until   map[string]time.Time
	givenUp map[string]bool
	revived map[string]int
	asked   map[string]int

	onRing  func(ctx context.Context, destination string) error
	onReach func(ctx context.Context, destination string) error
	// onRevive is what the host does when it no longer leaves a destination alone.
	onRevive func(destination string)
}

func newHost() *host {
	return &host{
		rings: map[string]int{}, ringing: map[string]int{}, until: map[string]time.Time{}, givenUp: map[string]bool{},
		revived: map[string]int{}, asked: map[string]int{},
	}
}

func (h *host) Ring(ctx context.Context, destination string) error {
	h.mu.Lock()
	h.rings[destination]++
	h.ringing[destination]++
	h.most = max(h.most, h.ringing[destination])
	f := h.onRing
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.ringing[destination]--
		h.mu.Unlock()
	}()
	if f == nil {
		return nil
	}
	return f(ctx, destination)
}

func (h *host) Backoff(destination string) (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until[destination], h.givenUp[destination]
}

func (h *host) Revive(destination string) {
	h.mu.Lock()
	h.revived[destination]++
	delete(h.until, destination)
	delete(h.givenUp, destination)
	f := h.onRevive
	h.mu.Unlock()
	if f != nil {
		f(destination)
	}
}

func (h *host) Reach(ctx context.Context, destination string) error {
	h.mu.Lock()
	h.asked[destination]++
	f := h.onReach
	h.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx, destination)
}

// change has f program the host.
func (h *host) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *host) count(counts map[string]int, destination string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return counts[destination]
}

func (h *host) rung(destination string) int       { return h.count(h.rings, destination) }
func (h *host) timesAsked(destination string) int { return h.count(h.asked, destination) }
func (h *host) timesRevived() int                 { return h.count(h.revived, there) }
