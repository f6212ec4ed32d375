package postgres_test

import (
	"fmt"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/storage/storagetest"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func TestAllocations(t *testing.T) {
	url := pgtest.NewSchema(t)
	storagetest.RunAllocations(t, func(t testing.TB) storage.Store { return postgres.New(openDB(t, url)) }, storagetest.Allocations{
		Commit1: 200, Commit20: 300, Commit1000: 16000, MessagesNone: 45, Messages100: 1400,
	})
}

// A round trip is the unit in which a hot path waits for the server.
func TestRoundTrips(t *testing.T) {
	network := newProxy(t, pgtest.NewSchema(t))
	db := openDB(t, network.url)
	db.SetMaxOpenConns(1) // each statement is prepared once
	store := postgres.New(db)
	if err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, err := store.Claim(t.Context(), writer, 1)
	if err != nil {
		t.Fatal(err)
	}
	commit := func(copies, edus int) func() error {
		return func() error {
			b := storage.Batch{Writer: writer, Previous: last, Last: last + types.Position(copies+edus)}
			d := storage.Delivery{Position: last + 1, Sender: "@bob:x", Type: "m.a"}
			for i := range copies {
				d.Copies = append(d.Copies, storage.Copy{Device: types.Device{UserID: "@alice:x", DeviceID: fmt.Sprint(i)}, Content: []byte(`{}`)})
			}
			b.Deliveries = []storage.Delivery{d}
			for i := range edus {
				b.EDUs = append(b.EDUs, storage.EDU{Destination: "remote", Position: last + types.Position(copies+i+1), Content: []byte(`{}`)})
			}
			key := types.TransactionKey{Device: device, EventType: "m.a", TransactionID: fmt.Sprint(last)}
			b.Transactions = []storage.Transaction{{TransactionKey: key}}
			last = b.Last
			return store.Commit(t.Context(), b)
		}
	}
	zero := types.Device{UserID: "@alice:x", DeviceID: "0"}
	for _, test := range []struct {
		what string
		want int64
		call func() error
	}{
		{"a commit of 1 copy", 3, commit(1, 0)},
		{"a commit of 20 copies", 3, commit(20, 0)},
		{"a commit of 20 copies and 20 EDUs", 3, commit(20, 20)},
		{"a commit of 1,000 copies", 5, commit(1000, 0)},
		{"a commit of 1,000 copies and 1,000 EDUs", 7, commit(1000, 1000)},
		{"the messages of a device", 2, func() error {
			_, err := store.Messages(t.Context(), zero, 0, last, 100, nil)
			return err
		}},
		{"the messages of a device that ignores somebody", 2, func() error {
			_, err := store.Messages(t.Context(), zero, 0, last, 100, []string{"@eve:x"})
			return err
		}},
		{"a look for a transaction", 2, func() error {
			_, err := store.Stored(t.Context(), []types.TransactionKey{{Device: zero}})
			return err
		}},
		{"an acknowledgement", 2, func() error {
			_, err := store.Acknowledge(t.Context(), []storage.Acknowledgement{{Device: zero, Through: last}}, 1000)
			return err
		}},
	} {
		for _, prepared := range []bool{false, true} {
			before := network.roundTrips()
			if err := test.call(); err != nil {
				t.Fatalf("%s: %v", test.what, err)
			}
			if n := network.roundTrips() - before; prepared && n != test.want {
				t.Errorf("%s takes %d round trips, want %d", test.what, n, test.want)
			}
		}
	}
}
