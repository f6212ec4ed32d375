package outbox_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// liveHost is a host that hears its doorbells: a queue for each destination, and one transaction under way. After a
// failure a queue is left alone until it is revived.
type liveHost struct {
	f       *fixture
	remotes map[string]*remote

	mu     sync.Mutex
	queues map[string]*queue
	sends  sync.WaitGroup
}

type queue struct {
	bells, parts int
	running      bool
	away         bool
}

func (h *liveHost) Backoff(destination string) (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Time{}, h.queues[destination].away
}

func (h *liveHost) Reach(context.Context, string) error { return nil }

func (h *liveHost) Ring(_ context.Context, destination string) error {
	h.put(destination, func(q *queue) { q.bells++ })
	return nil
}

func (h *liveHost) Revive(destination string) {
	h.put(destination, func(q *queue) { q.away = false })
}

// put changes a queue and has it worked on.
func (h *liveHost) put(destination string, change func(q *queue)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queues[destination]
	change(q)
	if !q.running && !q.away && q.bells+q.parts > 0 {
		q.running = true
		h.sends.Go(func() { h.work(destination, q) })
	}
}

func (h *liveHost) work(destination string, q *queue) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { q.running = false }()
	for q.bells+q.parts > 0 && !q.away {
		bells, parts := q.bells, q.parts
		t := h.f.transaction(destination, nil, typings(parts)...)
		h.mu.Unlock()
		err := h.f.Send(h.f.ctx, t, h.remotes[destination].deliver)
		h.mu.Lock()
		if err != nil {
			q.away = true
			return
		}
		q.bells, q.parts = q.bells-bells, q.parts-parts
	}
}

// TestConcurrent has many EDUs added while the host sends, the network fails now and then, and servers give hints. Every
// ring leads to a Send, so that nothing may be left once nothing is added.
func TestConcurrent(t *testing.T) {
	each(t, func(f *fixture) {
		const destinations, each = 8, 120
		h := &liveHost{f: f, remotes: map[string]*remote{}, queues: map[string]*queue{}}
		f.Outbox = outbox.New(outbox.Options{Store: f.store, Host: h, Log: quiet(), Now: f.clock.Now, Linger: time.Millisecond})
		var names []string
		for i := range destinations {
			name := fmt.Sprintf("server%d.org", i)
			names = append(names, name)
			h.queues[name] = &queue{}
			h.remotes[name] = newRemote(t)
			h.remotes[name].keeps = true
			h.remotes[name].on(func(context.Context, gomatrixserverlib.Transaction) error {
				if rand.IntN(5) == 0 {
					return errNetwork
				}
				return nil
			})
		}
		f.start()
		want := make(map[string][]string)
		var commits sync.Mutex
		var adding sync.WaitGroup
		for range 4 {
			adding.Go(func() {
				for range each {
					name := names[rand.IntN(len(names))]
					commits.Lock()
					all := []storage.EDU{edu(name, fmt.Sprint("m", f.last))}
					f.commit(all)
					want[name] = append(want[name], all[0].MessageID)
					commits.Unlock()
					f.Added(all)
					f.Seen(name)
					if rand.IntN(10) == 0 {
						h.put(names[rand.IntN(len(names))], func(q *queue) { q.parts = min(q.parts+1, 90) })
					}
				}
			})
		}
		adding.Wait()
		f.waitFor("everything was sent", func() bool {
			f.clock.advance(outbox.Tick / 10)
			return f.Destinations() == 0
		})
		for _, name := range names {
			if got := h.remotes[name].got(); !slices.Equal(got, want[name]) {
				t.Errorf("%s has\n%v\nwant\n%v", name, got, want[name])
			}
			f.wantLine(name, nil)
		}
		h.sends.Wait()
	})
}
