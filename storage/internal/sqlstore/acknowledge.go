package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

// Acknowledge implements storage.Store.
func (s *Store) Acknowledge(ctx context.Context, acknowledgements []storage.Acknowledgement, limit int) ([]storage.Acknowledged, error) {
	if limit <= 0 {
		return nil, fmt.Errorf("acknowledge: the limit of %d messages lets nothing be deleted", limit)
	}
	for _, a := range acknowledgements {
		if err := checkDevice(a.Device); err != nil {
			return nil, fmt.Errorf("acknowledge: %w", err)
		}
	}
	if len(acknowledgements) == 0 {
		return nil, nil
	}
	acknowledged, err := s.dialect.Acknowledge(ctx, mergeByDevice(acknowledgements), limit)
	if err != nil {
		return nil, s.failed(ctx, "acknowledge", err)
	}
	return acknowledged, nil
}

// mergeByDevice sorts by device, so that concurrent calls meet the rows in the same order, and keeps
// the furthest acknowledgement of each device.
func mergeByDevice(acknowledgements []storage.Acknowledgement) []storage.Acknowledgement {
	sorted := slices.SortedFunc(slices.Values(acknowledgements), func(a, b storage.Acknowledgement) int {
		return cmp.Or(
			cmp.Compare(a.UserID, b.UserID),
			cmp.Compare(a.DeviceID, b.DeviceID),
			cmp.Compare(b.Through, a.Through),
		)
	})
	return slices.CompactFunc(sorted, func(a, b storage.Acknowledgement) bool { return a.Device == b.Device })
}
