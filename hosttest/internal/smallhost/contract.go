package smallhost

import (
	"context"
	"database/sql"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/storage/postgres"
	"github.com/matrix-org/dendrite/todevicemodule/storage/sqlite"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/wire"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

var _ todevicemodule.Host = (*host)(nil)

// UserDevices is part of devices.Source.
func (h *host) UserDevices(_ context.Context, userID string) ([]string, error) {
	if server, valid := wire.ServerOf(userID); !valid || !h.IsLocalServer(server) {
		return nil, devices.ErrNotLocal
	}
	return h.accounts.devices(userID), nil
}

// DeviceOwners is part of devices.Source.
func (h *host) DeviceOwners(_ context.Context, deviceIDs []string) (map[string]string, error) {
	return h.accounts.owners(deviceIDs), nil
}

// VirtualDevice is part of todevicemodule.Devices: there are no application services.
func (h *host) VirtualDevice(string) bool { return false }

// IsLocalServer is part of todevicemodule.Federation.
func (h *host) IsLocalServer(serverName string) bool { return serverName == string(h.name) }

// Federates is part of todevicemodule.Federation.
func (h *host) Federates() bool { return true }

// WakeDevices is part of todevicemodule.Waker.
func (h *host) WakeDevices(_ types.Position, wakeups []writer.Wakeup) {
	for _, w := range wakeups {
		for _, deviceID := range w.DeviceIDs {
			h.waiting.wake(types.Device{UserID: w.UserID, DeviceID: deviceID})
		}
	}
}

// Store is part of todevicemodule.Database.
func (h *host) Store(todevicemodule.DatabaseConfig) (store storage.Store, err error) {
	path, isFile := strings.CutPrefix(h.database, "file:")
	if !isFile {
		if h.db, err = sql.Open("postgres", h.database); err != nil {
			return nil, err
		}
		return postgres.New(h.db), nil
	}
	path, _, _ = strings.Cut(path, "?")
	if h.db, err = sql.Open(sqliteDriver, path+sqliteOptions); err != nil {
		return nil, err
	}
	return sqlite.New(h.db, sqlite.NewWriter(h.db), path), nil
}

// ForeignQueue is part of todevicemodule.Database: the host never kept messages by itself.
func (h *host) ForeignQueue(todevicemodule.DatabaseConfig) (storage.ForeignQueue, error) {
	return nil, nil
}
