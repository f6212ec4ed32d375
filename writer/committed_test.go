package writer_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Every batch that is stored is told of once, before its positions can be seen, and none that is not.
func TestCommittedBatchesAreTold(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		var f *fixture
		var told []storage.Batch
		var published []types.Position
		f = start(t, open, func(o *writer.Options) {
			o.Committed = func(batch storage.Batch) { // before Submit returns
				told, published = append(told, batch), append(published, f.Published())
			}
		})
		submit := func(name string) error { return f.Submit(f.ctx, message(name)) }
		for _, fault := range []func(){func() {}, func() { f.store.LoseBefore(1) }, func() { f.store.LoseAnswer(1) }} {
			fault()
			if err := submit("stored" + string(rune('a'+len(told)))); err != nil {
				t.Fatal(err)
			}
			f.store.OnCommit(nil)
		}
		f.store.RefuseType("org.example.refused")
		if err := submit("refused"); !errors.Is(err, faulty.ErrRefused) {
			t.Fatal(err)
		}
		f.store.OnCommit(nil)
		if err := f.Submit(f.ctx, writer.Submission{Parts: []writer.Part{{Transaction: message("alone").Parts[0].Transaction}}}); err != nil {
			t.Fatal(err)
		}
		var names []string
		for i, batch := range told {
			if published[i] >= batch.Last || i > 0 && published[i] != told[i-1].Last {
				t.Errorf("batch %d ends at %d, and %d could be seen when it was told of", i, batch.Last, published[i])
			}
			for _, d := range batch.Deliveries {
				names = append(names, d.Type[len("org.example."):])
			}
		}
		if want := []string{"storeda", "storedb", "storedc"}; len(told) != 4 || !slices.Equal(names, want) {
			t.Errorf("told of %d batches with %v, want %v and one without a message", len(told), names, want)
		}
		if stored, _ := f.queue(t); !slices.Equal(stored, names) {
			t.Errorf("stored: %v", stored)
		}
	})
}
