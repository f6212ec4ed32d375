package outbox_test

import (
	"context"
	"errors"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
)

// blocked is a Send whose transaction is under way until release is called.
func (f *fixture) blocked(release <-chan struct{}) (sent chan error) {
	f.Helper()
	underway := make(chan struct{})
	f.remote.on(func(ctx context.Context, _ gomatrixserverlib.Transaction) error {
		close(underway)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	sent = make(chan error, 1)
	go func() { sent <- f.send() }()
	<-underway
	return sent
}

func TestStopWaitsForWhatIsUnderWay(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.add(edus(there, "m", 3)...)
		release := make(chan struct{})
		sent := f.blocked(release)
		stopped := make(chan error, 1)
		go func() { stopped <- f.Stop(f.ctx) }()
		f.waitFor("it is stopping", f.Stopping)
		if len(stopped) > 0 {
			t.Fatal("Stop did not wait")
		}
		f.remote.on(nil)
		close(release)
		if err := errors.Join(<-sent, <-stopped); err != nil {
			t.Error(err)
		}
		f.wantLine(there, nil)
	})
}

func TestStopGivesUp(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 3)...)
		sent := f.blocked(nil)
		ctx, cancel := context.WithCancel(f.ctx)
		cancel()
		if f.Stop(ctx) == nil {
			t.Error("Stop does not tell that something was under way")
		}
		if err := <-sent; !errors.Is(err, context.Canceled) {
			t.Errorf("Send returned %v", err)
		}
		f.wantLine(there, ids)
		f.remote.on(nil)
		f.renew()
		f.start()
		f.must(f.send())
		f.wantArrived(ids)
	})
}

// The host sends its own events for as long as it runs.
func TestSendAfterStop(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 3)...)
		f.must(f.Stop(f.ctx))
		if f.send() == nil {
			t.Error("a doorbell passes for heard")
		}
		f.must(f.sendTransaction(f.transaction(there, []string{`{}`}, typing(1))))
		took := f.remote.tried()
		if len(took) != 1 || len(took[0].PDUs) != 1 || len(took[0].EDUs) != 1 {
			t.Errorf("the transactions are %+v", took)
		}
		f.wantLine(there, ids)
		f.Added(edus(there, "x", 1))
		f.Seen(there)
		f.must(f.Stop(f.ctx)) // again
	})
}

// The host keeps its ID after a failure, and adds to what it sends.
func TestSendAfterStopNamesEachContentAnew(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.must(f.Stop(f.ctx))
	f.remote.fails(errNetwork)
	for i := range 4 {
		if f.send(typings(i)...) == nil {
			t.Error("Send returned no error")
		}
	}
	if n := len(f.remote.tried()); n != 3 {
		t.Errorf("%d transactions, want 3", n)
	}
}

// Rings and questions under way end with it.
func TestStopWhileRinging(t *testing.T) {
	f := onSQLite(t)
	f.host.onRing = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	f.host.onReach = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	f.host.givenUp["away.org"] = true
	f.start()
	f.add(edu(there, "m"), edu("away.org", "m"))
	f.waitFor("it rings and asks", func() bool { return f.host.rung(there) == 1 && f.host.timesAsked("away.org") == 1 })
	f.must(f.Stop(f.ctx))
	if left := goroutines(); left != nil {
		t.Errorf("left after Stop:\n%s", left)
	}
}

// What came in while Stop waits is left for the next start.
func TestNoRingsWhileStopping(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	release := make(chan struct{})
	sent := f.blocked(release)
	stopped := make(chan error, 1)
	go func() { stopped <- f.Stop(f.ctx) }()
	f.waitFor("it is stopping", f.Stopping)
	f.add(edu("other.org", "m"))
	f.wantRings("other.org", 0)
	f.remote.on(nil)
	close(release)
	if err := errors.Join(<-sent, <-stopped); err != nil {
		t.Error(err)
	}
}
