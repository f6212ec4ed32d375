package hosttest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func failedReadsAre5xx(ctx context.Context, tr *trial) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alice, bob, since, err := tr.pairCaughtUp(ctx)
	if err != nil {
		return err
	}
	waiting, err := bob.waitAt(ctx, since)
	if err != nil {
		return err
	}
	works := fail[messagesCall](tr.seam, faulty.ErrFails)
	defer works()
	if err = alice.send(ctx, to(largeNumbered(0), bob)); err != nil {
		return err
	}
	a, err := waiting.answered(ctx)
	if err != nil {
		return fmt.Errorf("once it was woken: %w", err)
	}
	if err = a.wantFault("a /sync whose queue can't be read once it was woken"); err != nil {
		return err
	}
	for _, from := range []string{since, ""} {
		a, err := bob.trySync(ctx, from, 0)
		if err != nil {
			return err
		}
		if err = a.wantFault("a /sync whose queue can't be read"); err != nil {
			return err
		}
	}
	works()
	res, err := bob.next(ctx, since)
	if err != nil {
		return err
	}
	return wantNumbers("the same since, once the queue can be read", res.events(), 0, 1)
}

func handedOverIsTold(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	const sent = 2
	if err = alice.sendNumbered(ctx, bob, 0, sent); err != nil {
		return err
	}
	if err = tr.restart(ctx); err != nil { // by which the module keeps no queue in memory
		return err
	}
	works := fail[messagesCall](tr.seam, faulty.ErrFails)
	_, err = bob.trySync(ctx, "", 0)
	works()
	if err != nil {
		return err
	}
	for responses := range 3 {
		n, err := tr.handedOver(ctx, bob.Device)
		if err != nil {
			return err
		}
		if n != responses*sent {
			return fmt.Errorf("after one /sync that failed, and %d responses with %d messages: Module.HandedOver was told of %d", responses, sent, n)
		}
		if err = bob.wantWaiting(ctx, "a /sync", sent); err != nil {
			return err
		}
	}
	return nil
}

// handedOver returns of how many messages for a device the module was told that they were handed over.
func (tr *trial) handedOver(ctx context.Context, device types.Device) (n int, err error) {
	query := url.Values{"user_id": {device.UserID}, "device_id": {device.DeviceID}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/trace?"+query.Encode(), nil)
	if err != nil {
		return 0, err
	}
	for _, route := range tr.server().Module.AdminRoutes() {
		if route.Name != "todevice_trace" {
			continue
		}
		res := route.Handle(req, "", nil)
		told, ok := res.JSON.(*admin.Trace)
		if !ok {
			return 0, fmt.Errorf("the module's trace: %d %v", res.Code, res.JSON)
		}
		for _, record := range told.Records {
			if record.Step == string(trace.HandedOver) {
				n += record.Count
			}
		}
		return n, nil
	}
	return 0, errors.New("the module has no trace")
}
