package sqlstore

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// CleanerStatements are the SQL texts of storage.Cleaner.
type CleanerStatements struct {
	Users    string // after, limit; returns user IDs in order
	Devices  string // user; returns device IDs
	Recorded string // user, device; returns a row if there are transaction records
	Forget   string // user, device, limit; returns a row for each record that it picked
	Excess   string // user, device, messages or 0, bytes or 0; returns the position if there is one
}

// deletedAtOnce keeps the deletes of much short beside the commits of the writer.
const deletedAtOnce = 1000

// Users implements storage.Store.
func (s *Store) Users(ctx context.Context, after string, limit int) ([]string, error) {
	if limit <= 0 {
		return nil, nil
	}
	if !isText(after) {
		return nil, fmt.Errorf("list users: the user ID is not valid text")
	}
	users, err := s.strings(ctx, s.sql.Clean.Users, after, limit)
	if err != nil {
		return nil, s.failed(ctx, "list users", err)
	}
	return users, nil
}

// Devices implements storage.Store.
func (s *Store) Devices(ctx context.Context, userID string) ([]string, error) {
	if err := checkIDs(userID); err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	devices, err := s.strings(ctx, s.sql.Clean.Devices, userID)
	if err != nil {
		return nil, s.failed(ctx, "list devices", err)
	}
	return devices, nil
}

func (s *Store) strings(ctx context.Context, statement string, args ...any) (values []string, err error) {
	err = s.query(ctx, statement, args, func(rows *sql.Rows) error {
		var value string
		if err := rows.Scan(&value); err != nil {
			return err
		}
		values = append(values, value)
		return nil
	})
	return values, err
}

// Purge implements storage.Store.
func (s *Store) Purge(ctx context.Context, device types.Device, through types.Position) (int, error) {
	if err := checkDevice(device); err != nil {
		return 0, fmt.Errorf("purge: %w", err)
	}
	covered := []storage.Acknowledgement{{Device: device, Through: through}}
	for purged := 0; ; {
		acknowledged, err := s.dialect.Acknowledge(ctx, covered, deletedAtOnce)
		if err != nil {
			return purged, s.failed(ctx, "purge", err)
		}
		if len(acknowledged) == 0 {
			return purged, nil
		}
		if purged += acknowledged[0].Deleted; !acknowledged[0].Unfinished {
			return purged, nil
		}
	}
}

// Forget implements storage.Store.
func (s *Store) Forget(ctx context.Context, device types.Device) error {
	if err := checkDevice(device); err != nil {
		return fmt.Errorf("forget a device: %w", err)
	}
	picked, err := countRows(s.db.QueryContext(ctx, s.sql.Clean.Recorded, device.UserID, device.DeviceID))
	if err != nil || picked == 0 {
		return s.failed(ctx, "forget a device", err)
	}
	for picked = deletedAtOnce; picked == deletedAtOnce; {
		err = s.dialect.Transact(ctx, func(ctx context.Context, tx *sql.Tx) (err error) {
			picked, err = countRows(tx.QueryContext(ctx, s.sql.Clean.Forget, device.UserID, device.DeviceID, deletedAtOnce))
			return err
		})
		if err != nil {
			return s.failed(ctx, "forget a device", err)
		}
	}
	return nil
}

// Excess implements storage.Store.
func (s *Store) Excess(ctx context.Context, device types.Device, messages int, bytes int64) (excess types.Position, err error) {
	if err = checkDevice(device); err != nil {
		return 0, fmt.Errorf("measure a queue: %w", err)
	}
	if messages <= 0 && bytes <= 0 {
		return 0, nil
	}
	args := []any{device.UserID, device.DeviceID, int64(max(0, messages)), max(0, bytes)}
	err = s.query(ctx, s.sql.Clean.Excess, args, func(rows *sql.Rows) error { return rows.Scan(&excess) })
	if err != nil {
		return 0, s.failed(ctx, "measure a queue", err)
	}
	return excess, nil
}
