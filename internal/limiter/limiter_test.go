package limiter_test

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/internal/limiter"
)

// never is a rate at which nothing is added to a burst while a test runs.
const never = 1e-9

func newLimiter(t *testing.T, perSecond float64, burst int) *limiter.Limiter[string] {
	t.Helper()
	l, err := limiter.New[string](perSecond, burst)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestNoLimit(t *testing.T) {
	l := newLimiter(t, 0, 1)
	for range 1000 {
		if !l.Allow("a", 1000) {
			t.Fatal("something was not allowed")
		}
	}
}

func TestEachKeyHasItsOwnBurst(t *testing.T) {
	l := newLimiter(t, never, 50)
	for _, key := range []string{"a", "b"} {
		if !l.Allow(key, 30) || l.Allow(key, 30) || !l.Allow(key, 20) {
			t.Errorf("the burst of %s is not 50", key)
		}
	}
	if l.Allow("c", 51) {
		t.Error("more than the burst was allowed at once")
	}
}

func TestGivenBack(t *testing.T) {
	l := newLimiter(t, never, 50)
	for range 3 {
		if !l.Allow("a", 40) {
			t.Fatal("what was given back was not allowed again")
		}
		l.GiveBack("a", 40)
	}
	l.GiveBack("a", 40)
	l.GiveBack("a", 0)
	l.GiveBack("b", 40)
	for _, key := range []string{"a", "b"} {
		if l.Allow(key, 51) || !l.Allow(key, 50) || l.Allow(key, 1) {
			t.Errorf("the burst of %s is not 50", key)
		}
	}
	newLimiter(t, 0, 1).GiveBack("a", 1)
}

func TestLimitOfManyAtOnce(t *testing.T) {
	l := newLimiter(t, never, 100)
	var allowed atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if l.Allow("a", 1) {
					allowed.Add(1)
				}
			}
		})
	}
	all.Wait()
	if n := allowed.Load(); n != 100 {
		t.Errorf("%d were allowed, want the burst of 100", n)
	}
}

// A flood of keys forgets some, and keeps the memory bounded.
func TestManyKeys(t *testing.T) {
	l := newLimiter(t, never, 1)
	for i := range 50_000 {
		if !l.Allow(strconv.Itoa(i), 1) {
			t.Fatalf("key %d was not allowed its first", i)
		}
	}
	if l.Allow("49999", 1) {
		t.Error("the last key was forgotten")
	}
	if !l.Allow("0", 1) {
		t.Error("the first key is still remembered after 50,000 others")
	}
}
