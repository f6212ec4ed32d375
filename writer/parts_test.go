package writer_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// together is one submission of several messages.
func together(names ...string) (s writer.Submission) {
	for _, name := range names {
		s.Parts = append(s.Parts, message(name).Parts...)
	}
	return s
}

func to(destination string, ids ...string) (edus []storage.EDU) {
	for _, id := range ids {
		edus = append(edus, storage.EDU{Destination: destination, Origin: "test", MessageID: id, Content: []byte(`{}`)})
	}
	return edus
}

func (f *fixture) line(t *testing.T, destination string) (ids []string, edus []storage.EDU) {
	t.Helper()
	edus, err := f.store.Waiting(f.ctx, destination, 0, 1<<62, 1000, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for _, edu := range edus {
		ids = append(ids, edu.MessageID)
	}
	return ids, edus
}

func TestPartsAreStoredTogether(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		if err := f.Submit(f.ctx, together("one", "two", "three", "two")); err != nil {
			t.Fatal(err)
		}
		f.wantQueue(t, "one", "two", "three")
		if n := len(f.store.Committed()); n != 1 {
			t.Errorf("%d commits were made, want one", n)
		}
	})
}

func TestStoredPartsArePassedOver(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		for _, names := range [][]string{{"two"}, {"one", "two", "three"}, {"three", "one"}} {
			if err := f.Submit(f.ctx, together(names...)); err != nil {
				t.Fatal(err)
			}
		}
		f.wantQueue(t, "two", "one", "three")
		if n := len(f.store.Committed()); n != 2 {
			t.Errorf("%d commits were made, want two: the last submission has nothing new", n)
		}
	})
}

func TestPartsOfLostCommits(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		for name, lose := range map[string]func(*faulty.Store){
			"before": func(s *faulty.Store) { s.LoseBefore(1) },
			"answer": func(s *faulty.Store) { s.LoseAnswer(1) },
		} {
			t.Run(name, func(t *testing.T) {
				f := start(t, open, nil)
				lose(f.store)
				s := together("one", "two")
				s.Parts[1].EDUs = to("remote", "first", "second")
				if err := f.Submit(f.ctx, s); err != nil {
					t.Fatal(err)
				}
				f.wantQueue(t, "one", "two")
				if ids, _ := f.line(t, "remote"); !slices.Equal(ids, []string{"first", "second"}) {
					t.Errorf("the line has %v", ids)
				}
			})
		}
	})
}

// What the database refuses takes everything with it that was submitted together, and nothing else.
func TestRefusedPart(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		f.store.RefuseType("org.example.poison")
		s := together("one", "poison")
		s.Parts[0].EDUs = to("remote", "first")
		if err := f.Submit(f.ctx, s); !errors.Is(err, faulty.ErrRefused) {
			t.Errorf("the error is %v, want %v", err, faulty.ErrRefused)
		}
		f.wantQueue(t)
		if ids, _ := f.line(t, "remote"); len(ids) != 0 {
			t.Errorf("the line has %v", ids)
		}
		if err := f.Submit(f.ctx, together("one")); err != nil {
			t.Error(err)
		}
		f.wantQueue(t, "one")
	})
}

func TestEDUsAreStoredWithTheirMessage(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		var mu sync.Mutex
		var told []storage.EDU
		f := start(t, open, func(o *writer.Options) {
			o.Outgoing = func(edus []storage.EDU) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, edus...)
			}
		})
		for range 2 { // the second is a repetition
			s := message("one")
			s.Parts[0].EDUs = append(to("here", "a", "b"), to("there", "c")...)
			if err := f.Submit(f.ctx, s); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Submit(f.ctx, writer.Submission{Parts: []writer.Part{{EDUs: to("here", "d")}}}); err != nil {
			t.Fatal(err)
		}
		f.wantQueue(t, "one")
		here, edus := f.line(t, "here")
		there, _ := f.line(t, "there")
		if !slices.Equal(here, []string{"a", "b", "d"}) || !slices.Equal(there, []string{"c"}) {
			t.Errorf("the lines have %v and %v", here, there)
		}
		if last := edus[len(edus)-1].Position; f.Published() != last {
			t.Errorf("published %d, want the last EDU's position %d", f.Published(), last)
		}
		mu.Lock()
		defer mu.Unlock()
		positions := make([]types.Position, len(told))
		for i := range told {
			positions[i] = told[i].Position
		}
		if len(told) != 4 || !slices.IsSorted(positions) {
			t.Errorf("told of %d EDUs with the positions %v, want 4 in order", len(told), positions)
		}
	})
}

func TestTransactionsExpire(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		s := together("short", "long")
		s.Parts[0].Remember = -time.Second
		if err := f.Submit(f.ctx, s); err != nil {
			t.Fatal(err)
		}
		janitor := writer.NewJanitor(f.store, quiet())
		janitor.Start(f.ctx)
		defer janitor.Stop()
		waitFor(t, f.ctx, "the expired record was deleted", func() bool {
			stored, err := f.store.Stored(f.ctx, []types.TransactionKey{s.Parts[0].Transaction, s.Parts[1].Transaction})
			_, long := stored[s.Parts[1].Transaction]
			return err == nil && len(stored) == 1 && long
		})
	})
}
