package writer_test

import (
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// What is stored while the clock is behind is remembered for as long as it says, by the clock that is right again.
func TestSlowClockForgetsNothingEarly(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		right := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
		var behind atomic.Int64
		clock := func(o *writer.Options) {
			o.Now = func() time.Time { return right.Add(-time.Duration(behind.Load())) }
		}
		submit := func(f *fixture, name string) {
			t.Helper()
			if err := f.Submit(f.ctx, message(name)); err != nil {
				t.Fatal(err)
			}
		}
		f := start(t, open, clock)
		submit(f, "before")
		behind.Store(int64(2 * message("").Parts[0].Remember))
		submit(f, "behind")
		if err := f.Stop(f.ctx); err != nil {
			t.Fatal(err)
		}
		f = start(t, open, clock)
		submit(f, "behind from the start on")
		behind.Store(0)
		submit(f, "after")
		names := []string{"before", "behind", "behind from the start on", "after"}
		expiry := right.Add(message("").Parts[0].Remember)
		if n, err := f.store.ForgetTransactions(f.ctx, expiry, 100); err != nil || n != 0 {
			t.Errorf("%d records were forgotten early (%v)", n, err)
		}
		for _, name := range names {
			submit(f, name)
		}
		if messages, err := f.store.Messages(f.ctx, bob, 0, f.Published(), 100, nil); err != nil || len(messages) != len(names) {
			t.Errorf("%d messages wait, want %d (%v)", len(messages), len(names), err)
		}
		if n, err := f.store.ForgetTransactions(f.ctx, time.UnixMicro(math.MaxInt64), 100); err != nil || n != len(names) {
			t.Errorf("%d records were kept, want %d (%v)", n, len(names), err)
		}
	})
}
