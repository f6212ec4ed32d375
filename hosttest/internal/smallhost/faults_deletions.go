package smallhost

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func deletionFaults() map[string][]Fault {
	faults := map[string][]Fault{
		"new-devices-are-reached": {{What: "devices are created past the module", breaks: func(_ *host, b *broken) {
			b.calls.createDevice = func(_ context.Context, _, _ string, create func() error) error { return create() }
		}}},
		"other-devices-keep-theirs": {{What: "when a device ends, all of its user's acknowledge what waits", breaks: func(h *host, b *broken) {
			b.calls.deleteDevices = func(ctx context.Context, userID string, remove func() error) error {
				err := b.module.DeleteDevices(ctx, userID, remove)
				for _, deviceID := range h.accounts.devices(userID) {
					b.module.AcknowledgeSync(types.Device{UserID: userID, DeviceID: deviceID}, b.module.LatestPosition())
				}
				return err
			}
		}}},
		"failed-clean-ups-are-5xx": {{What: "a failed clean-up is no error", breaks: func(_ *host, b *broken) {
			b.calls.deleteDevices = func(ctx context.Context, userID string, remove func() error) (removal error) {
				_ = b.module.DeleteDevices(ctx, userID, func() error {
					removal = remove()
					return removal
				})
				return removal
			}
		}}},
		"new-devices-find-nothing": {{What: "a device is created all the same", breaks: func(_ *host, b *broken) {
			b.calls.createDevice = func(ctx context.Context, userID, deviceID string, create func() error) error {
				if b.module.CreateDevice(ctx, userID, deviceID, create) == nil {
					return nil
				}
				return create()
			}
		}}},
		"deletions-overtake-requests": {{What: "the module gets a request once its body is there", breaks: readFirst(maxRequestBytes)}},
	}
	for _, way := range []string{"/logout", "/logout/all", "/devices/", "/delete_devices", "/account/password", "/account/deactivate"} {
		faults["deleted-devices-leave-nothing"] = append(faults["deleted-devices-leave-nothing"], deletePastModule(way))
	}
	return faults
}

// readFirst reads the bodies of requests ahead of the module, but for those over most bytes.
func readFirst(most int64) func(*host, *broken) {
	return func(_ *host, b *broken) {
		b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
			if req.ContentLength > most {
				return b.module.SendToDevice(req, device, eventType, transactionID)
			}
			text, err := io.ReadAll(req.Body)
			if err != nil {
				return refuse(http.StatusBadRequest, spec.ErrorUnknown, "The body did not arrive.")
			}
			return b.module.SendToDevice(withBody(req, text), device, eventType, transactionID)
		}
	}
}

// deletePastModule is a fault in what one endpoint does with devices.
func deletePastModule(way string) Fault {
	type wayKey struct{}
	return Fault{What: "devices are deleted past the module by " + way, breaks: func(_ *host, b *broken) {
		b.routes = func(whole http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				path := strings.TrimPrefix(req.URL.Path, "/_matrix/client/v3")
				past := path == way || strings.HasSuffix(way, "/") && strings.HasPrefix(path, way)
				whole.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), wayKey{}, past)))
			})
		}
		b.calls.deleteDevices = func(ctx context.Context, userID string, remove func() error) error {
			if past, _ := ctx.Value(wayKey{}).(bool); past {
				return remove()
			}
			return b.module.DeleteDevices(ctx, userID, remove)
		}
	}}
}
