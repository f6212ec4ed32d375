package bodies

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"
)

const (
	// smallBytes is up to what size a body is small. Large ones may take three quarters of the room, and a small one
	// takes precedence over those that wait: keys for one or a few devices do not wait for uploads of megabytes.
	smallBytes = 64 << 10

	// While others wait for room, a body must arrive at arrivalRate bytes a second, after its first second, and never pause for
	// longer than that. Somebody who sends as little as possible to hold as much as possible loses it.
	arrivalGrace = time.Second
	arrivalRate  = 512 << 10

	// lookEvery is how often it is looked for bodies that arrive too slowly, while others wait.
	lookEvery = 100 * time.Millisecond
)

// Room bounds what is held of many bodies together. It is safe for concurrent use; nil has no bound.
//
// A body takes room as it arrives, so that what is announced and not sent takes none. Once it is larger than a small one it
// waits until there is room for all that is announced, or for its limit: bodies that hold a part each, and wait for the rest of each
// other, would wait for ever.
type Room struct {
	most int64
	wait time.Duration
	// Refused is called for each body that finds no room. It is set before the first one comes; nil means that nobody is told.
	Refused func()

	mu           sync.Mutex
	small, large int64 // bytes held by small and by large bodies
	arriving     []*Body
	turns        uint64
	waiting      int  // bodies
	waitingLarge int  // bodies that are to be large
	looking      bool // a look is to come
}

// NewRoom returns room for so many bytes. One body alone may be larger. A body waits for as long as wait says, in all.
func NewRoom(most int64, wait time.Duration) *Room {
	return &Room{most: most, wait: wait}
}

// Held returns how many bytes are held.
func (r *Room) Held() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.small + r.large
}

// Waiting returns how many bodies wait for room.
func (r *Room) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

func (r *Room) begin(source io.Reader) *Body {
	b := &Body{room: r, index: -1, source: source}
	if r == nil {
		return b
	}
	b.began = time.Now()
	b.moved = b.began
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turns++
	b.turn, b.index = r.turns, len(r.arriving)
	r.arriving = append(r.arriving, b)
	return b
}

// extend keeps a piece that is full, nil at first, and returns nil once there is room for n bytes more. A body that was small and is
// not any more is to have claim bytes at the most.
func (b *Body) extend(ctx context.Context, full []byte, n int, claim int64) error {
	r := b.room
	if r == nil {
		b.keep(full)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.evicted {
		return ErrNoRoom
	}
	b.keep(full)
	switch {
	case b.isLarge():
		return nil
	case b.arrived+int64(n) <= smallBytes:
		b.wants = b.arrived + int64(n)
	default:
		b.wants = max(claim, smallBytes+1)
	}
	if r.fits(b) && (r.waitingLarge == 0 || !b.willBeLarge()) {
		r.hold(b, b.wants)
		return nil
	}
	return r.waitFor(ctx, b)
}

func (b *Body) keep(piece []byte) {
	if piece != nil {
		b.pieces = append(b.pieces, piece)
		b.arrived += int64(len(piece))
		b.moved = time.Now()
	}
}

func (b *Body) isLarge() bool { return b.held > smallBytes }

func (b *Body) willBeLarge() bool { return b.wants > smallBytes }

// fits reports whether there is room for what a body wants to hold. A single large one may be larger than the share of them all.
func (r *Room) fits(b *Body) bool {
	share := r.most / 4 * 3
	small := r.small - b.held
	if b.willBeLarge() {
		large := r.large + b.wants
		if r.large == 0 {
			large = min(large, share)
		}
		return large <= share && small+large <= r.most
	}
	return small+b.wants+min(r.large, share) <= r.most
}

// hold has a body hold n bytes in all.
func (r *Room) hold(b *Body, n int64) {
	if b.isLarge() {
		r.large -= b.held
	} else {
		r.small -= b.held
	}
	b.held, b.wants = n, 0
	if b.isLarge() {
		r.large += n
	} else {
		r.small += n
	}
}

// waitFor is called and returns with the mutex held, which it lets go of meanwhile.
func (r *Room) waitFor(ctx context.Context, b *Body) error {
	b.asked, b.ready = time.Now(), make(chan struct{})
	r.count(b, 1)
	r.settle()
	ready, longest := b.ready, r.wait-b.waited
	r.mu.Unlock()
	timeout := time.NewTimer(longest)
	defer timeout.Stop()
	var err error
	select {
	case <-ready:
	case <-timeout.C:
		err = ErrNoRoom
	case <-ctx.Done():
		err = ctx.Err()
	}
	r.mu.Lock()
	switch {
	case b.evicted:
		return ErrNoRoom
	case b.wants == 0: // there was room, be it in the last moment
		return nil
	}
	r.count(b, -1)
	b.wants = 0
	return err
}

func (r *Room) count(b *Body, n int) {
	r.waiting += n
	if b.willBeLarge() {
		r.waitingLarge += n
	}
}

// settle hands out what room there is, and makes more where it may.
func (r *Room) settle() {
	for {
		first := r.first()
		if first == nil {
			return
		}
		if r.fits(first) {
			r.count(first, -1)
			r.hold(first, first.wants)
			first.moved = time.Now()
			first.waited += first.moved.Sub(first.asked)
			close(first.ready)
			continue
		}
		victim := r.victim(first)
		if victim == nil {
			r.lookAgain()
			return
		}
		r.evict(victim)
	}
}

func (r *Room) lookAgain() {
	if r.looking {
		return
	}
	r.looking = true
	time.AfterFunc(lookEvery, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.looking = false
		r.settle()
	})
}

// first returns the body that is the next to get room: the small ones, and then who began first.
func (r *Room) first() (first *Body) {
	if r.waiting == 0 {
		return nil
	}
	for _, b := range r.arriving {
		switch {
		case b.wants == 0:
		case first == nil, first.willBeLarge() && !b.willBeLarge():
			first = b
		case first.willBeLarge() == b.willBeLarge() && b.turn < first.turn:
			first = b
		}
	}
	return first
}

// victim returns a body that has to make room for the first one, or nil if there is none. It is the one that is the most behind the
// rate at which it must arrive; otherwise, if the first one is small, the last of those that wait to be large.
func (r *Room) victim(first *Body) *Body {
	var behind, last *Body
	var due time.Time
	now := time.Now()
	for _, b := range r.arriving {
		switch {
		case b == first || b.held == 0:
		case b.wants != 0:
			if b.willBeLarge() && (last == nil || b.turn > last.turn) {
				last = b
			}
		default:
			if d := b.due(); now.After(d) && (behind == nil || d.Before(due)) && r.helps(b, first) {
				behind, due = b, d
			}
		}
	}
	if behind == nil && !first.willBeLarge() {
		return last
	}
	return behind
}

// due is until when a body must have got on, if others wait.
func (b *Body) due() time.Time {
	due := b.began.Add(b.waited + arrivalGrace + time.Duration(b.arrived)*time.Second/arrivalRate)
	if pause := b.moved.Add(arrivalGrace); pause.Before(due) {
		return pause
	}
	return due
}

// helps reports whether the first one gets nearer to its room without b: small bodies take none of the large ones' share.
func (r *Room) helps(b, first *Body) bool {
	return !first.willBeLarge() || b.isLarge() || r.large+first.wants <= r.most/4*3
}

// evict has a body lose all that it holds.
func (r *Room) evict(b *Body) {
	if b.wants != 0 {
		r.count(b, -1)
		defer close(b.ready)
	}
	r.hold(b, 0)
	b.pieces, b.evicted = nil, true
	r.leave(b)
	if source, ok := b.source.(Interruptible); ok {
		_ = source.SetReadDeadline(time.Unix(1, 0))
	}
}

// broken returns why a source could not be read.
func (b *Body) broken(err error) error {
	if b.room == nil {
		return err
	}
	b.room.mu.Lock()
	defer b.room.mu.Unlock()
	if b.evicted {
		return ErrNoRoom
	}
	return err
}

func (r *Room) leave(b *Body) {
	last := len(r.arriving) - 1
	r.arriving[b.index] = r.arriving[last]
	r.arriving[b.index].index = b.index
	r.arriving[last] = nil
	r.arriving = r.arriving[:last]
	b.index = -1
	if cap(r.arriving) > 64 && len(r.arriving) < cap(r.arriving)/4 { // a flood is over
		r.arriving = slices.Clone(r.arriving)
	}
}

// end keeps the last piece, and gives back what was claimed beyond what has come.
func (b *Body) end(last []byte) error {
	r := b.room
	if r == nil {
		b.keep(last)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.evicted {
		return ErrNoRoom
	}
	b.keep(last)
	r.leave(b)
	r.hold(b, min(b.held, b.arrived))
	r.settle()
	return nil
}

// Release makes room for others. The second call does nothing, as that of a nil Body.
func (b *Body) Release() {
	if b == nil || b.room == nil {
		return
	}
	r := b.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.index >= 0 {
		r.leave(b)
	}
	r.hold(b, 0)
	b.pieces, b.room, b.source = nil, nil, nil
	r.settle()
}
