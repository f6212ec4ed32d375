package streams_test

import (
	"context"
	"errors"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var errAway = errors.New("the database is away")

// database is a store in plain Go, for one goroutine. What happens in the middle of a call is up to the test.
type database struct {
	storage.Store
	queues map[types.Device][]types.Message
	state  storage.State

	reads, deletions int    // calls
	answered         func() // after a read has its answer, before it returns
	deleted          func() // after a deletion, before it returns
	failing          error
	lockLost         error
}

func newDatabase() *database {
	nothing := func() {}
	return &database{queues: make(map[types.Device][]types.Message), answered: nothing, deleted: nothing}
}

func (d *database) Messages(_ context.Context, device types.Device, after, through types.Position, limit int, except []string) ([]types.Message, error) {
	d.reads++
	if d.failing != nil {
		return nil, d.failing
	}
	found := d.find(device, after, through, limit, except)
	d.answered()
	return found, nil
}

func (d *database) find(device types.Device, after, through types.Position, limit int, except []string) []types.Message {
	var found []types.Message
	for _, m := range d.queues[device] {
		if m.Position > after && m.Position <= through && len(found) < limit && !slices.Contains(except, m.Sender) {
			found = append(found, m)
		}
	}
	return found
}

func (d *database) Claim(_ context.Context, writer string, atLeast types.Position) (types.Position, error) {
	if d.failing != nil {
		return 0, d.failing
	}
	d.state = storage.State{Writer: writer, Last: max(d.state.Last+1, atLeast)}
	return d.state.Last, nil
}

func (d *database) Commit(_ context.Context, batch storage.Batch) error {
	if d.state != (storage.State{Writer: batch.Writer, Last: batch.Previous}) {
		return storage.ErrFenced
	}
	d.state.Last = batch.Last
	for _, delivery := range batch.Deliveries {
		for i, c := range delivery.Copies {
			d.queues[c.Device] = append(d.queues[c.Device], types.Message{
				Position: delivery.Position + types.Position(i), Sender: delivery.Sender, Type: delivery.Type, Content: slices.Clone(c.Content),
			})
		}
	}
	return nil
}

// Acknowledge fails, if it does, after the first of the acknowledgements.
func (d *database) Acknowledge(_ context.Context, acknowledgements []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	d.deletions++
	var acknowledged []storage.Acknowledged
	for i, a := range acknowledgements {
		if i > 0 && d.failing != nil {
			break
		}
		deleted, more := d.remove(a.Device, a.Through, limit)
		if deleted > 0 || more {
			acknowledged = append(acknowledged, storage.Acknowledged{Acknowledgement: a, Deleted: deleted, Unfinished: more})
		}
	}
	d.deleted()
	if d.failing != nil {
		return nil, d.failing
	}
	return acknowledged, nil
}

// Purge fails, if it does, after the first message.
func (d *database) Purge(_ context.Context, device types.Device, through types.Position) (int, error) {
	d.deletions++
	limit := len(d.queues[device])
	if d.failing != nil {
		limit = min(limit, 1)
	}
	deleted, _ := d.remove(device, through, limit)
	d.deleted()
	return deleted, d.failing
}

func (d *database) remove(device types.Device, through types.Position, limit int) (deleted int, more bool) {
	queue := d.queues[device]
	for deleted < limit && deleted < len(queue) && queue[deleted].Position <= through {
		deleted++
	}
	d.queues[device] = slices.Clone(queue[deleted:])
	return deleted, deleted < len(queue) && queue[deleted].Position <= through
}

func (d *database) Lock(context.Context) (storage.Lock, error) {
	if d.lockLost != nil {
		return nil, d.lockLost
	}
	return databaseLock{d}, nil
}

type databaseLock struct{ *database }

func (l databaseLock) Check(context.Context) error { return l.lockLost }
func (databaseLock) Release() error                { return nil }
