package host

import (
	"context"

	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib"
)

// MarkDeviceListStale is part of todevicemodule.Host. The host waits up to 10 seconds for the user's
// server, and before that for its own workers, without a look at the context
// (userapi/internal/device_list_update.go, notifyWorkers): it is left to itself when the context ends.
func (d *Dendrite) MarkDeviceListStale(ctx context.Context, userID, deviceID string) error {
	_, domain, err := gomatrixserverlib.SplitID('@', userID)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- (*d.userAPI.Load()).PerformMarkAsStaleIfNeeded(ctx, &userapi.PerformMarkAsStaleRequest{
			UserID: userID, Domain: domain, DeviceID: deviceID,
		}, &struct{}{})
	}()
	select {
	case err = <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
