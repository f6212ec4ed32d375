package todevicemodule_test

import (
	"context"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// tookOver is a store into which messages up to a position were imported.
type tookOver struct {
	storage.Store
	through types.Position
}

func (s tookOver) Imported(context.Context) (types.Position, error) { return s.through, nil }

// A position up to the last imported one may be the host's own, and tells nobody an age.
func TestOnlyTheModulesPositionsTellAges(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		store := open(t)
		if err := store.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		now := types.Position(time.Now().UnixMicro())
		last, err := store.Claim(t.Context(), "before", now)
		if err != nil {
			t.Fatal(err)
		}
		position := last + 1
		err = store.Commit(t.Context(), storage.Batch{Writer: "before", Previous: last, Last: position, Deliveries: []storage.Delivery{{
			Position: position, Sender: "@alice:test", Type: "m.test",
			Copies: []storage.Copy{{Device: types.Device{UserID: "@bob:test", DeviceID: "PHONE"}, Content: []byte(`{}`)}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		for through, known := range map[types.Position]bool{0: true, position - 1: true, position: false, position + 1: false} {
			t.Run("", func(t *testing.T) {
				module := started(t, tookOver{store, through})
				queues, ok := call(t, module, "todevice_queues", nil).JSON.(*admin.Queues)
				if !ok || len(queues.Queues) != 1 || (queues.Queues[0].AgeSeconds != nil) != known {
					t.Errorf("imported up to %d, the queue from %d is shown as %+v", through, position, queues)
				}
			})
		}
	})
}
