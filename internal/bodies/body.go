// Package bodies holds the bodies of requests in memory, within a bound that all of them have together.
package bodies

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"
)

var (
	// ErrTooLarge is returned for a body over its own limit.
	ErrTooLarge = errors.New("the body is too large")

	// ErrNoRoom is returned for a body that found no room beside the others in its time, or that arrived so slowly that it
	// had to make room for them. The same request may be sent again.
	ErrNoRoom = errors.New("too much is held in memory for other requests")
)

// A body is read into pieces that grow fourfold from the first to the largest: a usual request is one piece or two, and
// no more is ever held than four times what has arrived, and the first piece.
const (
	firstPiece   = 4 << 10
	largestPiece = 64 << 10
)

// Body is one request's body, whole. It is used by one goroutine, until it is released.
type Body struct {
	pieces  [][]byte
	arrived int64 // bytes of pieces

	// The rest is the room's, and guarded by its mutex, as are those above while the body arrives.
	room    *Room
	index   int           // among those that arrive; -1 for none of them
	turn    uint64        // in which order bodies began
	held    int64         // bytes that are counted
	wants   int64         // bytes that it waits to hold, in all; 0 while it does not wait
	ready   chan struct{} // closed once it need not wait any more
	began   time.Time
	moved   time.Time     // when something last arrived, or it need not wait any more
	asked   time.Time     // when it began to wait for room
	waited  time.Duration // for room, in all
	evicted bool
	source  io.Reader
}

// Interruptible is a source whose Read can be ended by a deadline that has passed, as a connection's can. One that is
// not learns that it had to make room when more arrives.
type Interruptible interface {
	SetReadDeadline(deadline time.Time) error
}

// Read reads a body to its end. It returns ErrTooLarge once more than limit bytes have come, without reading on; ErrNoRoom;
// or the error of the source or the context. The length is what was announced, or negative if nothing was. Each body that is
// returned has to be released. A nil Room holds any number.
func (r *Room) Read(ctx context.Context, source io.Reader, length int64, limit int) (*Body, error) {
	if length > int64(limit) {
		return nil, ErrTooLarge
	}
	b := r.begin(source)
	if err := b.fill(ctx, source, length, limit); err != nil {
		b.Release()
		if r != nil && r.Refused != nil && errors.Is(err, ErrNoRoom) {
			r.Refused()
		}
		return nil, err
	}
	return b, nil
}

func (b *Body) fill(ctx context.Context, source io.Reader, length int64, limit int) error {
	most := int64(limit)
	if length >= 0 {
		most = length // the source may be longer all the same
	}
	var piece []byte
	total := int64(0)
	for size := int64(firstPiece); ; size = min(4*size, largestPiece) {
		// A byte more than is to come tells of the end, or that there is none.
		n := min(size, max(most, total)-total+1)
		if total < smallBytes {
			n = min(n, smallBytes-total)
		}
		if err := b.extend(ctx, piece, int(n), most); err != nil {
			return err
		}
		piece = make([]byte, 0, n)
		for len(piece) < cap(piece) {
			n, err := source.Read(piece[len(piece):cap(piece)])
			piece = piece[:len(piece)+n]
			total += int64(n)
			switch {
			case total > int64(limit):
				return ErrTooLarge
			case err == io.EOF:
				return b.end(piece)
			case err != nil:
				return b.broken(err)
			}
		}
	}
}

// Text returns the body as a string, and keeps no other copy of it. It is called at most once, and not beside Reader.
func (b *Body) Text() string {
	defer func() { b.pieces = nil }()
	if len(b.pieces) == 1 {
		return string(b.pieces[0])
	}
	var text strings.Builder
	text.Grow(int(b.arrived))
	for _, piece := range b.pieces {
		text.Write(piece)
	}
	return text.String()
}

// Each shows f the body piece by piece. It is called before Text and Reader.
func (b *Body) Each(f func(piece []byte)) {
	for _, piece := range b.pieces {
		f(piece)
	}
}

// Reader returns a reader of the body that lets go of what was read. It is called at most once, and not beside Text.
func (b *Body) Reader() io.Reader { return (*reader)(b) }

type reader Body

func (r *reader) Read(p []byte) (n int, err error) {
	for len(r.pieces) > 0 && len(r.pieces[0]) == 0 {
		r.pieces[0] = nil
		r.pieces = r.pieces[1:]
	}
	if len(r.pieces) == 0 {
		return 0, io.EOF
	}
	n = copy(p, r.pieces[0])
	r.pieces[0] = r.pieces[0][n:]
	return n, nil
}
