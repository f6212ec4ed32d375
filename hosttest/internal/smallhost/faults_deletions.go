package smallhost

import (
	"bytes"
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
		"new-devices-are-reached": {
			{What: "devices are created past the module", breaks: func(_ *host, b *broken) {
				b.calls.createDevice = func(_ context.Context, _, _ string, create func() error) error { return create() }
			}},
			{What: "users are registered past the module", breaks: func(h *host, b *broken) {
				b.calls.createDevice = func(ctx context.Context, userID, deviceID string, create func() error) error {
					if len(h.accounts.devices(userID)) == 0 {
						return create()
					}
					return b.module.CreateDevice(ctx, userID, deviceID, create)
				}
			}},
		},
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
		"deletions-overtake-syncs": {
			syncingAs("a device is not looked for once its queue was read", func(h *host, _ types.Device) (token string) {
				for _, u := range h.accounts.now().Users {
					for _, token = range u.Devices {
						return token
					}
				}
				return token
			}),
			syncingAs("a new device of the same ID is taken for the one that was deleted", func(h *host, device types.Device) string {
				return h.accounts.now().Users[device.UserID].Devices[device.DeviceID]
			}),
			{What: "what is read is told as handed over", breaks: func(_ *host, b *broken) {
				reading("", func(b *broken, r *readCall) { b.module.HandedOver(r.device, r.messages) }).breaks(nil, b)
				b.calls.handedOver = func(types.Device, []types.Message) {}
			}},
		},
	}
	faults["deleted-devices-leave-nothing"] = []Fault{
		deletePastModule("/account/password without logout_devices", func(path string, body []byte) bool {
			return path == "/account/password" && !bytes.Contains(body, []byte("logout_devices"))
		}),
	}
	for _, way := range []string{"/logout", "/logout/all", "/devices/", "/delete_devices", "/account/password", "/account/deactivate"} {
		faults["deleted-devices-leave-nothing"] = append(faults["deleted-devices-leave-nothing"], deletePastModule(way, func(path string, _ []byte) bool {
			return path == way || strings.HasSuffix(way, "/") && strings.HasPrefix(path, way)
		}))
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

// syncingAs is a fault of a /sync that looks for another access token than that of the request, once it has read.
func syncingAs(what string, tokenFor func(*host, types.Device) string) Fault {
	type requestKey struct{}
	return Fault{What: what, breaks: func(h *host, b *broken) {
		b.routes = func(whole http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				var same *http.Request
				same = req.WithContext(context.WithValue(req.Context(), requestKey{}, &same))
				whole.ServeHTTP(w, same)
			})
		}
		reading("", func(_ *broken, r *readCall) {
			if token := tokenFor(h, r.device); token != "" {
				(*r.ctx.Value(requestKey{}).(**http.Request)).Header.Set("Authorization", "Bearer "+token)
			}
		}).breaks(h, b)
	}}
}

// deletePastModule is a fault in what some requests do with devices.
func deletePastModule(way string, isPast func(path string, body []byte) bool) Fault {
	type wayKey struct{}
	return Fault{What: "devices are deleted past the module by " + way, breaks: func(_ *host, b *broken) {
		b.routes = func(whole http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				path := strings.TrimPrefix(req.URL.Path, "/_matrix/client/v3")
				var body []byte
				if strings.HasPrefix(path, "/account/") {
					body, _ = io.ReadAll(req.Body)
					req = withBody(req, body)
				}
				whole.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), wayKey{}, isPast(path, body))))
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
