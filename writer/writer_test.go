package writer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

var bob = types.Device{UserID: "@bob:test", DeviceID: "LAPTOP"}

func quiet() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// fixture is a writer on a real database whose faults the test chooses.
type fixture struct {
	*writer.Writer
	store *faulty.Store
	ctx   context.Context

	mu    sync.Mutex
	wakes []wake
}

type wake struct {
	position types.Position
	devices  []writer.Wakeup
}

func start(t *testing.T, open testdb.Open, change func(*writer.Options)) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	f := &fixture{store: &faulty.Store{Store: open(t)}, ctx: ctx}
	options := writer.Options{Store: f.store, Log: quiet(), Wake: f.wake}
	if change != nil {
		change(&options)
	}
	if err := f.store.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	f.Writer = writer.New(options)
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Stop(ctx) })
	return f
}

func (f *fixture) wake(position types.Position, devices []writer.Wakeup) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakes = append(f.wakes, wake{position, devices})
}

func (f *fixture) woken() []wake {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.wakes)
}

// message is a submission to bob with a transaction of its own.
func message(name string) writer.Submission {
	return writer.Submission{Parts: []writer.Part{{
		Sender: "@alice:test",
		Type:   "org.example." + name,
		Copies: []storage.Copy{{Device: bob, Content: []byte(`{"name":"` + name + `"}`)}},
		Transaction: types.TransactionKey{
			Device: types.Device{UserID: "@alice:test", DeviceID: "PHONE"}, EventType: "org.example." + name, TransactionID: name,
		},
		Remember: time.Hour,
	}}}
}

// plain is a submission to bob without a transaction.
func plain(name string) writer.Submission {
	s := message(name)
	s.Parts[0].Transaction = types.TransactionKey{}
	return s
}

func (f *fixture) queue(t *testing.T) (names []string, last types.Position) {
	t.Helper()
	messages, err := f.store.Store.Messages(f.ctx, bob, 0, 1<<62, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		names = append(names, m.Type[len("org.example."):])
		last = m.Position
	}
	return names, last
}

func (f *fixture) wantQueue(t *testing.T, want ...string) {
	t.Helper()
	if got, _ := f.queue(t); !slices.Equal(got, want) {
		t.Fatalf("the queue has %v, want %v", got, want)
	}
}

func TestSubmitReturnsOnceStored(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		for _, name := range []string{"one", "two", "three"} {
			if err := f.Submit(f.ctx, message(name)); err != nil {
				t.Fatal(err)
			}
		}
		f.wantQueue(t, "one", "two", "three")
		_, last := f.queue(t)
		if f.Published() != last {
			t.Errorf("published %d, want the last message's position %d", f.Published(), last)
		}
	})
}

func TestWakesAfterTheCommit(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		var f *fixture
		var readable atomic.Int64
		f = start(t, open, func(o *writer.Options) {
			inner := o.Wake
			o.Wake = func(position types.Position, devices []writer.Wakeup) {
				messages, err := o.Store.Messages(context.Background(), bob, 0, position, 10, nil)
				if err == nil {
					readable.Store(int64(len(messages)))
				}
				inner(position, devices)
			}
		})
		s := message("one")
		s.Parts[0].Copies = append(s.Parts[0].Copies,
			storage.Copy{Device: types.Device{UserID: bob.UserID, DeviceID: "PHONE"}, Content: []byte(`{}`)},
			storage.Copy{Device: types.Device{UserID: "@carol:test", DeviceID: "X"}, Content: []byte(`{}`)})
		if err := f.Submit(f.ctx, s); err != nil {
			t.Fatal(err)
		}
		if readable.Load() != 1 {
			t.Error("the device was woken before its message could be read")
		}
		wakes := f.woken()
		if len(wakes) != 1 || wakes[0].position != f.Published() || len(wakes[0].devices) != 2 ||
			!slices.Equal(wakes[0].devices[0].DeviceIDs, []string{"LAPTOP", "PHONE"}) {
			t.Errorf("wakes: %+v", wakes)
		}
	})
}

func TestTransactionIsStoredOnce(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		var group sync.WaitGroup
		for range 20 {
			group.Go(func() {
				if err := f.Submit(f.ctx, message("once")); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		f.wantQueue(t, "once")
		if err := f.Stop(f.ctx); err != nil {
			t.Fatal(err)
		}
		again := start(t, open, nil)
		if err := again.Submit(again.ctx, message("once")); err != nil {
			t.Fatal(err)
		}
		again.wantQueue(t, "once")
	})
}

// Equals that wait in one batch are committed once, and all learn what became of the first.
func TestConcurrentEqualsShareABatch(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		var failed atomic.Int64
		f := start(t, open, func(o *writer.Options) {
			o.Observe = func(c writer.Commit) {
				if c.Err != nil {
					failed.Add(1)
				}
			}
		})
		release := f.holdNextCommit(t)
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() {
				if err := f.Submit(f.ctx, message("equal")); err != nil {
					t.Error(err)
				}
			})
		}
		f.waitQueued(t, 5)
		release()
		group.Wait()
		f.wantQueue(t, "first", "equal")
		if failed.Load() != 0 {
			t.Error("the equals were told apart by a failed commit only")
		}
	})
}

// holdNextCommit submits a message "first" and holds its commit until release is called, so that
// what is submitted in the meantime forms one batch.
func (f *fixture) holdNextCommit(t *testing.T) (release func()) {
	t.Helper()
	entered, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.store.OnCommit(func(ctx context.Context, batch storage.Batch, real faulty.Commit) error {
		once.Do(func() { close(entered); <-held })
		return real(ctx, batch)
	})
	done := make(chan error, 1)
	go func() { done <- f.Submit(f.ctx, message("first")) }()
	<-entered
	return func() {
		close(held)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (f *fixture) waitQueued(t *testing.T, n int) {
	t.Helper()
	for f.Queued() < n {
		if f.ctx.Err() != nil {
			t.Fatalf("%d requests are queued, want %d", f.Queued(), n)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestLostConnection(t *testing.T) {
	for name, lose := range map[string]func(*faulty.Store, int){
		"before the commit": (*faulty.Store).LoseBefore,
		"after the commit":  (*faulty.Store).LoseAnswer,
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, open testdb.Open) {
				f := start(t, open, nil)
				lose(f.store, 3)
				for _, name := range []string{"one", "two", "three", "four"} {
					s := message(name)
					s.Parts[0].Transaction = types.TransactionKey{} // nothing but the position record tells
					if err := f.Submit(f.ctx, s); err != nil {
						t.Fatal(err)
					}
				}
				f.wantQueue(t, "one", "two", "three", "four")
				f.wantPositionsUsedOnce(t)
				if wakes := f.woken(); len(wakes) != 4 {
					t.Errorf("woken %d times, want once for each commit", len(wakes))
				}
			})
		})
	}
}

func (f *fixture) wantPositionsUsedOnce(t *testing.T) {
	t.Helper()
	var last types.Position
	for _, batch := range f.store.Committed() {
		for _, d := range batch.Deliveries {
			if d.Position <= last {
				t.Errorf("position %d was committed after %d", d.Position, last)
			}
			last = d.Position
		}
	}
}

// While it is not known what became of a commit, nothing else is committed, and whoever waits
// too long is told so.
func TestUndecidedCommit(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		var away atomic.Bool
		away.Store(true)
		f.store.LoseAnswer(1)
		f.store.OnState(func() error {
			if away.Load() {
				return faulty.ErrLost
			}
			return nil
		})
		short, cancel := context.WithTimeout(f.ctx, 50*time.Millisecond)
		defer cancel()
		if err := f.Submit(short, message("one")); !errors.Is(err, writer.ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
		if len(f.woken()) != 0 {
			t.Error("an undecided commit was published")
		}
		second := make(chan error, 1)
		go func() { second <- f.Submit(f.ctx, message("two")) }()
		f.waitQueued(t, 1)
		away.Store(false)
		if err := <-second; err != nil {
			t.Fatal(err)
		}
		if err := f.Submit(f.ctx, message("one")); err != nil {
			t.Fatal(err)
		}
		f.wantQueue(t, "one", "two")
		if wakes := f.woken(); len(wakes) != 2 {
			t.Errorf("woken %d times: the commit that was found to be stored must wake its devices too", len(wakes))
		}
	})
}

func TestRefusedMessageFailsAlone(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		poisoned(t, open, func(s *faulty.Store) { s.RefuseType("org.example.poison") }, faulty.ErrRefused)
	})
}

// poisoned submits three messages for one batch and wants the one to end with an error that the store is made to fail at.
func poisoned(t *testing.T, open testdb.Open, fail func(*faulty.Store), want error) {
	t.Helper()
	f := start(t, open, nil)
	release := f.holdNextCommit(t)
	errs := make(map[string]chan error)
	for i, name := range []string{"good", "poison", "fine"} {
		errc := make(chan error, 1)
		errs[name] = errc
		go func() { errc <- f.Submit(f.ctx, message(name)) }()
		f.waitQueued(t, i+1)
	}
	fail(f.store)
	release()
	for name, errc := range errs {
		err := <-errc
		if poison := name == "poison"; poison != errors.Is(err, want) || !poison && err != nil || errors.Is(err, writer.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.wantQueue(t, "first", "good", "fine")
}

// What the database fails at, in a corrupt part of an index say, is answered at once, and nobody waits for it.
func TestFaultHoldsNobodyUp(t *testing.T) {
	lookedUp := func(s *faulty.Store) {
		s.OnCommit(func(ctx context.Context, batch storage.Batch, real faulty.Commit) error {
			if slices.ContainsFunc(batch.Transactions, func(t storage.Transaction) bool { return t.TransactionID == "poison" }) {
				return storage.ErrStored
			}
			return real(ctx, batch)
		})
		s.OnStored(func(_ context.Context, keys []types.TransactionKey) error {
			if slices.ContainsFunc(keys, func(k types.TransactionKey) bool { return k.TransactionID == "poison" }) {
				return faulty.ErrFails
			}
			return nil
		})
	}
	for name, fail := range map[string]func(*faulty.Store){
		"in the queues":       func(s *faulty.Store) { s.FailType("org.example.poison") },
		"in the transactions": lookedUp,
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, open testdb.Open) { poisoned(t, open, fail, storage.ErrFault) })
		})
	}
}

func TestStaleIsNotStored(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		s := message("stale")
		s.Current = func() bool { return false }
		if err := f.Submit(f.ctx, s); !errors.Is(err, writer.ErrStale) {
			t.Fatalf("got %v, want ErrStale", err)
		}
		f.wantQueue(t)
		s.Current = func() bool { return true }
		if err := f.Submit(f.ctx, s); err != nil {
			t.Fatal(err)
		}
		f.wantQueue(t, "stale")
	})
}

// What was stored before is answered so, even where its devices are no longer those that it was for.
func TestStaleRepetitionIsAnswered(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		if err := f.Submit(f.ctx, message("x")); err != nil {
			t.Fatal(err)
		}
		s := message("x")
		s.Current = func() bool { return false }
		if err := f.Submit(f.ctx, s); err != nil {
			t.Error(err)
		}
		f.wantQueue(t, "x")
	})
}

// The store is asked for transactions only where one is stored already.
func TestOnlyRepetitionsAreLookedUp(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		var lookedUp atomic.Int64
		f.store.OnStored(func(context.Context, []types.TransactionKey) error {
			lookedUp.Add(1)
			return nil
		})
		release := f.holdNextCommit(t)
		errs := make(chan error, 3)
		for i, name := range []string{"a", "b", "first"} { // the last is a repetition by then
			go func() { errs <- f.Submit(f.ctx, message(name)) }()
			f.waitQueued(t, i+1)
		}
		if n := lookedUp.Load(); n != 0 {
			t.Errorf("%d lookups for a message that is new", n)
		}
		release()
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		f.wantQueue(t, "first", "a", "b")
		if n := lookedUp.Load(); n != 1 {
			t.Errorf("%d lookups for a batch with a repetition", n)
		}
	})
}

// Whoever only waits for what was submitted before does not have the database write.
func TestNothingIsCommittedForNothing(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		before := f.Published()
		if err := f.Submit(f.ctx, writer.Submission{}); err != nil || f.Published() != before {
			t.Errorf("position %d after %d: %v", f.Published(), before, err)
		}
	})
}

// The clock may step back, and a position is never handed out twice or out of order.
func TestPositionsNeverGoBack(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		var now atomic.Int64
		now.Store(1_000_000)
		clock := func(o *writer.Options) {
			o.Now = func() time.Time { return time.UnixMicro(now.Load()) }
		}
		f := start(t, open, clock)
		published := []types.Position{f.Published()}
		submit := func(f *fixture, name string) {
			if err := f.Submit(f.ctx, message(name)); err != nil {
				t.Fatal(err)
			}
			published = append(published, f.Published())
		}
		submit(f, "one")
		now.Store(10)
		submit(f, "two")
		if _, err := f.store.Acknowledge(f.ctx, []storage.Acknowledgement{{Device: bob, Through: f.Published()}}, 100); err != nil {
			t.Fatal(err)
		}
		if err := f.Stop(f.ctx); err != nil {
			t.Fatal(err)
		}
		f = start(t, open, clock)
		published = append(published, f.Published())
		submit(f, "three")
		now.Store(50_000_000)
		submit(f, "four")
		if published[len(published)-1] != 50_000_000 {
			t.Errorf("the last position is %d, want that of the clock", published[len(published)-1])
		}
		for i := 1; i < len(published); i++ {
			if published[i] <= published[i-1] {
				t.Errorf("positions went from %d to %d: %v", published[i-1], published[i], published)
			}
		}
	})
}

// A database restored from a backup has an older position record; tokens handed out since must
// stay behind what comes.
func TestRestoredUnderARunningWriter(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		if err := f.Submit(f.ctx, message("one")); err != nil {
			t.Fatal(err)
		}
		before := f.Published()
		if _, err := f.store.Claim(f.ctx, "somebody else", 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Submit(f.ctx, message("two")); err != nil {
			t.Fatal(err)
		}
		if f.Published() <= before {
			t.Errorf("published %d after %d", f.Published(), before)
		}
		f.wantQueue(t, "one", "two")
	})
}

// A server that is started again right after a crash may find the lock still held for a moment.
func TestStartWaitsForALockThatIsAboutToGo(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		ctx := t.Context()
		store := open(t)
		if err := store.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		held, err := store.Lock(ctx)
		if err != nil {
			t.Fatal(err)
		}
		w := writer.New(writer.Options{Store: &lockedOnce{Store: open(t), free: held.Release}, Log: quiet(), Wake: (&fixture{}).wake})
		if err = w.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err = w.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
}

// lockedOnce has the lock freed once it was found held.
type lockedOnce struct {
	storage.Store
	free func() error
}

func (l *lockedOnce) Lock(ctx context.Context) (storage.Lock, error) {
	lock, err := l.Store.Lock(ctx)
	if errors.Is(err, storage.ErrLocked) {
		err = errors.Join(err, l.free())
	}
	return lock, err
}

func TestSecondWriterIsKeptOut(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		second := writer.New(writer.Options{Store: open(t), Log: quiet(), Wake: f.wake})
		if err := second.Start(f.ctx); !errors.Is(err, storage.ErrLocked) {
			t.Fatalf("got %v, want ErrLocked", err)
		}
		if err := f.Stop(f.ctx); err != nil {
			t.Fatal(err)
		}
		if err := second.Start(f.ctx); err != nil {
			t.Fatal(err)
		}
		if err := second.Stop(f.ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStopStoresWhatWasTaken(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		release := f.holdNextCommit(t)
		const n = 20
		errs := make(chan error, n)
		for i := range n {
			go func() { errs <- f.Submit(f.ctx, message(fmt.Sprint(i))) }()
		}
		f.waitQueued(t, n)
		stopped := make(chan error, 1)
		go func() { stopped <- f.Stop(f.ctx) }()
		release()
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if names, _ := f.queue(t); len(names) != n+1 {
			t.Errorf("%d messages are stored, want %d", len(names), n+1)
		}
		if err := f.Submit(f.ctx, message("late")); !errors.Is(err, writer.ErrStopped) {
			t.Errorf("got %v after the stop, want ErrStopped", err)
		}
	})
}

func TestStopGivesUpOnADatabaseThatIsAway(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		attempted := make(chan struct{})
		var once sync.Once
		f.store.OnCommit(func(context.Context, storage.Batch, faulty.Commit) error {
			once.Do(func() { close(attempted) })
			return faulty.ErrLost
		})
		result := make(chan error, 1)
		go func() { result <- f.Submit(f.ctx, message("one")) }()
		<-attempted
		soon, cancel := context.WithTimeout(f.ctx, 50*time.Millisecond)
		defer cancel()
		if err := f.Stop(soon); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, writer.ErrUnavailable) && !errors.Is(err, writer.ErrStopped) {
			t.Errorf("got %v, want ErrUnavailable or ErrStopped", err)
		}
		f.wantQueue(t)
	})
}

// A full queue holds submitters back until their time is up, and stores nothing for those.
func TestBackPressure(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		release := f.holdNextCommit(t)
		large := message("large")
		large.Parts[0].Copies[0].Content = []byte(`{"a":"` + string(make([]byte, 63<<20)) + `"}`)
		blocked, cancel := context.WithCancel(f.ctx)
		largeDone, overDone := make(chan error, 1), make(chan error, 1)
		go func() { largeDone <- f.Submit(blocked, large) }()
		f.waitQueued(t, 1)
		over := message("over")
		over.Parts[0].Copies[0].Content = []byte(`{"a":"` + string(make([]byte, 2<<20)) + `"}`)
		soon, cancelSoon := context.WithTimeout(f.ctx, 50*time.Millisecond)
		defer cancelSoon()
		go func() { overDone <- f.Submit(soon, over) }()
		if err := <-overDone; !errors.Is(err, writer.ErrUnavailable) {
			t.Errorf("got %v from a full queue, want ErrUnavailable", err)
		}
		cancel()
		if err := <-largeDone; !errors.Is(err, writer.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		release()
		if err := f.Submit(f.ctx, message("after")); err != nil {
			t.Fatal(err)
		}
		f.wantQueue(t, "first", "after")
	})
}
