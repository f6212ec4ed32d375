package bodies

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

const (
	mib  = 1 << 20
	wait = 20 * time.Second
)

// pattern returns n bytes of which no two neighbouring pieces are the same.
func pattern(n int) []byte {
	block := make([]byte, 4093) // of no power of two
	for i := range block {
		block[i] = byte('a' + i/7%26)
	}
	return bytes.Repeat(block, n/len(block)+1)[:n]
}

// slow hands out a text at so many bytes a second, and then hangs if it is to, until the test is over.
type slow struct {
	text  []byte
	rate  int
	over  context.Context
	hangs bool
}

func (s *slow) Read(p []byte) (int, error) {
	switch {
	case len(s.text) == 0 && s.hangs:
		<-s.over.Done()
		return 0, io.ErrUnexpectedEOF
	case len(s.text) == 0:
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 32<<10)], s.text)
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.rate))
	s.text = s.text[n:]
	return n, nil
}

func wantEmpty(t rapid.TB, r *Room) {
	t.Helper()
	if r.small != 0 || r.large != 0 || r.waiting != 0 || r.waitingLarge != 0 || len(r.arriving) != 0 {
		t.Fatalf("not everything was given back: %d and %d bytes are held, %d bodies arrive, %d wait, %d of them large",
			r.small, r.large, len(r.arriving), r.waiting, r.waitingLarge)
	}
}

func mustRead(t *testing.T, r *Room, text []byte) *Body {
	t.Helper()
	b, err := r.Read(t.Context(), bytes.NewReader(text), int64(len(text)), len(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBodyIsWhatArrived(t *testing.T) {
	for _, r := range []*Room{nil, NewRoom(16*mib, wait)} {
		for _, n := range []int{0, 1, firstPiece - 1, firstPiece, firstPiece + 1, 5 * firstPiece, smallBytes, 300_017} {
			text := pattern(n)
			for name, source := range map[string]func() io.Reader{
				"at once":     func() io.Reader { return bytes.NewReader(text) },
				"byte by one": func() io.Reader { return iotest.OneByteReader(bytes.NewReader(text)) },
				"with EOF":    func() io.Reader { return iotest.DataErrReader(bytes.NewReader(text)) },
			} {
				for _, length := range []int64{-1, int64(n)} {
					for _, limit := range []int{n, n + 1, 4 * mib} {
						read := func() *Body {
							b, err := r.Read(t.Context(), source(), length, limit)
							if err != nil {
								t.Fatalf("%d bytes %s, announced %d, limit %d: %v", n, name, length, limit, err)
							}
							return b
						}
						b := read()
						if b.Text() != string(text) {
							t.Errorf("%d bytes %s: the text is another", n, name)
						}
						b.Release()
						b.Release()
						b = read()
						if got, err := io.ReadAll(b.Reader()); err != nil || !bytes.Equal(got, text) {
							t.Errorf("%d bytes %s: what is read is another, %v", n, name, err)
						}
						b.Release()
					}
				}
			}
		}
		if r != nil {
			wantEmpty(t, r)
		}
	}
}

func TestBodyOverItsLimit(t *testing.T) {
	r := NewRoom(16*mib, wait)
	for _, limit := range []int{0, 1, firstPiece, 5 * firstPiece, 2 * mib} {
		source := bytes.NewReader(pattern(4 * mib))
		if _, err := r.Read(t.Context(), source, -1, limit); !errors.Is(err, ErrTooLarge) {
			t.Errorf("limit %d: %v", limit, err)
		}
		if read := 4*mib - source.Len(); read > limit+1 {
			t.Errorf("limit %d: %d bytes were read", limit, read)
		}
		if _, err := r.Read(t.Context(), iotest.ErrReader(errors.New("it was read")), int64(limit)+1, limit); !errors.Is(err, ErrTooLarge) {
			t.Errorf("limit %d, announced: %v", limit, err)
		}
	}
	broken := io.MultiReader(bytes.NewReader(pattern(mib)), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := r.Read(t.Context(), broken, -1, 4*mib); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a connection that breaks: %v", err)
	}
	wantEmpty(t, r)
}

// What is announced and not sent takes no room.
func TestAnnouncedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(16*mib, wait)
		over, end := context.WithCancel(t.Context())
		for range 1000 {
			go func() {
				b, err := r.Read(t.Context(), &slow{text: []byte("x"), rate: mib, over: over, hangs: true}, 10*mib, 10*mib)
				if err == nil {
					b.Release()
				}
			}()
		}
		synctest.Wait()
		if held := r.Held(); held > 1000*firstPiece {
			t.Errorf("%d bytes are held for a thousand bodies that are announced alone", held)
		}
		mustRead(t, r, pattern(10*mib)).Release()
		time.Sleep(time.Second)
		end()
		synctest.Wait()
		wantEmpty(t, r)
	})
}

// Whoever holds room and does not go on loses it to those who wait; a body of the usual size gets it at once, and one that arrives as
// it should is left alone.
func TestSlowBodiesMakeRoom(t *testing.T) {
	for name, size := range map[string]int{"large": 4 * mib, "small": 32 << 10} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRoom(16*mib, wait)
				over, end := context.WithCancel(t.Context())
				defer end()
				var given atomic.Int32
				for range 20 * mib / size {
					go func() {
						b, err := r.Read(t.Context(), &slow{text: pattern(size), rate: 100 * mib, over: over, hangs: true}, 10*mib, 10*mib)
						if errors.Is(err, ErrNoRoom) {
							given.Add(1)
						}
						b.Release()
					}()
				}
				synctest.Wait()
				began := time.Now()
				mustRead(t, r, pattern(2000)).Release()
				if waited := time.Since(began); waited > arrivalGrace+2*lookEvery {
					t.Errorf("a small body waited for %s", waited)
				}
				steady := make(chan error)
				go func() {
					b, err := r.Read(t.Context(), &slow{text: pattern(5 * mib), rate: mib}, -1, 10*mib)
					b.Release()
					steady <- err
				}()
				for range 20 {
					began = time.Now()
					mustRead(t, r, pattern(6*mib)).Release()
					if waited := time.Since(began); waited > 10*time.Second {
						t.Errorf("a large body waited for %s", waited)
					}
				}
				if err := <-steady; err != nil {
					t.Errorf("a body that arrived steadily: %v", err)
				}
				time.Sleep(time.Second)
				end()
				synctest.Wait()
				wantEmpty(t, r)
			})
		})
	}
}

// Large bodies that all want more than there is: one after the other comes to its end.
func TestMoreThanThereIsRoomFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(16*mib, wait)
		var whole, refused atomic.Int32
		for range 40 {
			go func() {
				b, err := r.Read(t.Context(), &slow{text: pattern(9 * mib), rate: 10 * mib}, 9*mib, 10*mib)
				switch {
				case err == nil:
					whole.Add(1)
				case errors.Is(err, ErrNoRoom):
					refused.Add(1)
				default:
					t.Error(err)
				}
				b.Release()
			}()
		}
		time.Sleep(2 * wait)
		synctest.Wait()
		if whole.Load() < 20 || whole.Load()+refused.Load() != 40 {
			t.Errorf("%d came to their end, %d were refused", whole.Load(), refused.Load())
		}
		wantEmpty(t, r)
	})
}

func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(16*mib, wait)
		first := mustRead(t, r, pattern(8*mib))
		began := time.Now()
		if _, err := r.Read(t.Context(), bytes.NewReader(pattern(8*mib)), -1, 10*mib); !errors.Is(err, ErrNoRoom) || time.Since(began) != wait {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.Read(ctx, bytes.NewReader(pattern(8*mib)), -1, 10*mib); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("once nobody wants it: %v", err)
		}
		done := make(chan struct{})
		go func() {
			mustRead(t, r, pattern(8*mib)).Release()
			close(done)
		}()
		synctest.Wait()
		if r.Waiting() != 1 {
			t.Errorf("%d wait, want 1", r.Waiting())
		}
		mustRead(t, r, pattern(smallBytes-1)).Release() // goes past
		first.Release()
		<-done
		wantEmpty(t, r)
	})
}

// A large body that waits is not overtaken by those that come later and want less.
func TestLargeBodiesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(16*mib, wait)
		first := mustRead(t, r, pattern(8*mib))
		var order []int
		var mu sync.Mutex
		for i, size := range []int{11 * mib, 3 * mib} { // the second would fit beside the one that is there
			go func() {
				b := mustRead(t, r, pattern(size))
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				time.Sleep(time.Second)
				b.Release()
			}()
			synctest.Wait()
		}
		if r.Waiting() != 2 {
			t.Errorf("%d wait, want 2", r.Waiting())
		}
		first.Release()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if len(order) != 2 || order[0] != 0 {
			t.Errorf("the order is %v", order)
		}
		wantEmpty(t, r)
	})
}

// A small body that finds no room takes that of a large one that waits for its own.
func TestSmallBodyGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(16*mib, wait)
		held := []*Body{mustRead(t, r, pattern(12*mib))}
		for r.small < 4*mib-smallBytes {
			held = append(held, mustRead(t, r, pattern(min(smallBytes-1, int(4*mib-smallBytes-r.small)))))
		}
		refused := make(chan error, 1)
		go func() {
			_, err := r.Read(t.Context(), bytes.NewReader(pattern(mib)), mib, mib)
			refused <- err
		}()
		synctest.Wait()
		if r.Waiting() != 1 || r.small != 4*mib {
			t.Fatalf("%d wait, small ones hold %d bytes", r.Waiting(), r.small)
		}
		began := time.Now()
		held = append(held, mustRead(t, r, pattern(2000)))
		if waited := time.Since(began); waited != 0 {
			t.Errorf("the small one waited for %s", waited)
		}
		if err := <-refused; !errors.Is(err, ErrNoRoom) {
			t.Errorf("the large one: %v", err)
		}
		for _, b := range held {
			b.Release()
		}
		wantEmpty(t, r)
	})
}

// A body that is larger than the room is taken alone, and leaves a quarter to the small ones.
func TestBodyLargerThanTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(4*mib, wait)
		giant := mustRead(t, r, pattern(10*mib))
		var small []*Body
		for range 15 {
			small = append(small, mustRead(t, r, pattern(smallBytes-1)))
		}
		if _, err := r.Read(t.Context(), bytes.NewReader(pattern(mib)), -1, 10*mib); !errors.Is(err, ErrNoRoom) {
			t.Errorf("a second one: %v", err)
		}
		giant.Release()
		for _, b := range small {
			b.Release()
		}
		wantEmpty(t, r)
	})
}

// TestSmallAndLargeBodiesTogether fills the room with bodies of both kinds: neither kind goes beyond what the other one leaves.
func TestSmallAndLargeBodiesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(mib, wait)
		refused := func(size int) {
			t.Helper()
			if b, err := r.Read(t.Context(), bytes.NewReader(pattern(size)), int64(size), mib); !errors.Is(err, ErrNoRoom) {
				t.Errorf("%d bytes beside %d: %v", size, r.Held(), err)
				b.Release()
			}
		}
		var held []*Body
		for range mib / 2 / smallBytes {
			held = append(held, mustRead(t, r, pattern(smallBytes-1)))
		}
		refused(mib/2 + 2*smallBytes)
		held = append(held, mustRead(t, r, pattern(mib/2)))
		refused(smallBytes - 1)
		refused(smallBytes + 1)
		for _, b := range held {
			b.Release()
		}
		wantEmpty(t, r)
	})
}

const modelLimit = 2*mib + 1

// sent is one body of TestModel.
type sent struct {
	size, rate  int
	hangs       bool
	length      int64
	start, kept time.Duration
}

// TestModel has many bodies come and go at random: nothing hangs, the bound holds all the time, what is whole is what was sent, and
// everything is given back.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		most := rapid.IntRange(1, 8).Draw(rt, "MiB") * mib
		millis := func(most int, name string) time.Duration {
			return time.Duration(rapid.IntRange(0, most).Draw(rt, name)) * time.Millisecond
		}
		all := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) sent {
			s := sent{
				size:  rapid.OneOf(rapid.IntRange(0, 2*smallBytes), rapid.IntRange(0, 2*mib)).Draw(rt, "size"),
				rate:  rapid.SampledFrom([]int{10 << 10, 600 << 10, mib, 100 * mib}).Draw(rt, "rate"),
				hangs: rapid.IntRange(0, 4).Draw(rt, "hangs") == 0,
				start: millis(5000, "start"), kept: millis(3000, "kept"),
			}
			s.length = rapid.SampledFrom([]int64{-1, int64(s.size)}).Draw(rt, "length")
			return s
		}), 1, 40).Draw(rt, "bodies")
		synctest.Test(t, func(*testing.T) { runModel(rt, most, all) })
	})
}

func runModel(t *rapid.T, most int, all []sent) {
	r := NewRoom(int64(most), wait)
	over, end := context.WithTimeout(context.Background(), time.Hour)
	defer end()
	var running, wrong atomic.Int32
	for _, s := range all {
		running.Add(1)
		go func() {
			defer running.Add(-1)
			text := pattern(s.size)
			time.Sleep(s.start)
			b, err := r.Read(over, &slow{text: text, rate: s.rate, over: over, hangs: s.hangs}, s.length, modelLimit)
			if err == nil {
				if b.arrived != int64(s.size) || b.held != b.arrived || b.Text() != string(text) {
					wrong.Add(1)
				}
				time.Sleep(s.kept)
			}
			b.Release()
		}()
	}
	for running.Load() > 0 {
		synctest.Wait()
		r.mu.Lock()
		held, large, arriving := r.small+min(r.large, int64(most)/4*3), r.large, len(r.arriving)
		r.mu.Unlock()
		if held > int64(most) || large > int64(max(most/4*3, modelLimit)) {
			t.Errorf("%d bytes are held, %d of them by large bodies, with room for %d", held, large, most)
		}
		if arriving == 0 || time.Now().Second() > 30 {
			time.Sleep(time.Second)
		} else {
			time.Sleep(50 * time.Millisecond)
		}
	}
	if wrong.Load() > 0 {
		t.Errorf("%d bodies are not what was sent", wrong.Load())
	}
	time.Sleep(2 * lookEvery)
	wantEmpty(t, r)
}

// A usual request takes a piece, the body and its text.
func TestAllocationsOfASmallBody(t *testing.T) {
	r := NewRoom(16*mib, wait)
	text := string(pattern(3000))
	source := strings.NewReader(text)
	got := testing.AllocsPerRun(100, func() {
		source.Reset(text)
		b, err := r.Read(t.Context(), source, int64(len(text)), mib)
		if err != nil {
			t.Fatal(err)
		}
		_ = b.Text()
		b.Release()
	})
	if got > 4 {
		t.Errorf("%.0f allocations, want at most 4", got)
	}
}

func BenchmarkSmallBody(b *testing.B) {
	for name, r := range map[string]*Room{"room": NewRoom(16*mib, wait), "no bound": nil} {
		b.Run(name, func(b *testing.B) {
			text := string(pattern(3000))
			b.RunParallel(func(pb *testing.PB) {
				source := strings.NewReader(text)
				for pb.Next() {
					source.Reset(text)
					body, err := r.Read(b.Context(), source, int64(len(text)), mib)
					if err != nil {
						b.Fatal(err)
					}
					_ = body.Text()
					body.Release()
				}
			})
		})
	}
}
