package smallhost

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// sending is SendToDevice.
type sending = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse

func clientFaults() map[string][]Fault {
	return map[string][]Fault{
		"every-version-is-served": {{What: "the unstable version is not there", breaks: func(_ *host, b *broken) {
			b.routes = func(whole http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					if strings.HasPrefix(req.URL.Path, "/_matrix/client/unstable/") {
						whole = handler(unknownRoute)
					}
					whole.ServeHTTP(w, req)
				})
			}
		}}},
		"paths-are-decoded": {{What: "event types are left encoded", breaks: func(_ *host, b *broken) {
			b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
				return b.module.SendToDevice(req, device, url.PathEscape(eventType), url.PathEscape(transactionID))
			}
		}}},
		"guests-may-send": {{What: "guests may not send", breaks: func(h *host, b *broken) {
			b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
				if h.accounts.now().Users[device.UserID].Guest {
					return refuse(http.StatusForbidden, spec.ErrorGuestAccessForbidden, "Guests may not send.")
				}
				return b.module.SendToDevice(req, device, eventType, transactionID)
			}
		}}},
		"only-devices-send": {{What: "whoever has no access token sends as the first user", breaks: sendAsFirstUser}},
		"requests-arrive-unread": {
			{What: "the host reads the body first", breaks: readFirst(math.MaxInt64)},
			{What: "the host has a smaller bound of its own", breaks: func(_ *host, b *broken) {
				b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
					if req.ContentLength > maxRequestBytes {
						return refuse(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "That is too much.")
					}
					return b.module.SendToDevice(req, device, eventType, transactionID)
				}
			}},
		},
		"answers-arrive-whole": {{What: "the headers of an answer are lost", breaks: func(_ *host, b *broken) {
			b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
				res := b.module.SendToDevice(req, device, eventType, transactionID)
				res.Headers = nil
				return res
			}
		}}},
		"an-accepted-message-is-durable": {{What: "what could not be stored gets a 200", Also: []string{"answers-arrive-whole"}, breaks: func(_ *host, b *broken) {
			b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
				res := b.module.SendToDevice(req, device, eventType, transactionID)
				if res.Code >= http.StatusInternalServerError {
					return ok(struct{}{})
				}
				return res
			}
		}}},
		"a-request-is-one-commit": {{What: "each recipient is sent to alone", breaks: func(_ *host, b *broken) {
			b.calls.sendToDevice = sendToEach(b)
		}}},
		"repetitions-are-recognised": {
			emptying("transaction IDs are deleted at a start", "todevice_transactions"),
			{What: "each request gets a transaction ID of its own", Also: []string{"paths-are-decoded"}, breaks: func(_ *host, b *broken) {
				b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, _ string) util.JSONResponse {
					return b.module.SendToDevice(req, device, eventType, rand.Text())
				}
			}},
		},
		"who-is-valid-is-reached": {
			{What: "a request with an unknown user is refused", breaks: func(h *host, b *broken) {
				b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
					text, messages := readMessages(req)
					for userID := range messages {
						if strings.HasSuffix(userID, ":"+string(h.name)) && len(h.accounts.devices(userID)) == 0 {
							return refuse(http.StatusNotFound, spec.ErrorNotFound, "There is no such user.")
						}
					}
					return b.module.SendToDevice(withBody(req, text), device, eventType, transactionID)
				}
			}},
			{What: "what is valid in a request that is refused is stored", breaks: func(_ *host, b *broken) {
				b.calls.sendToDevice = func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
					text, messages := readMessages(req)
					res := b.module.SendToDevice(withBody(req, text), device, eventType, transactionID)
					if !res.Is2xx() {
						_ = sendToEach(b)(withBody(req, marshal(map[string]any{"messages": messages})), device, eventType, transactionID)
					}
					return res
				}
			}},
		},
	}
}

// sendAsFirstUser takes a request without an access token for one of somebody's.
func sendAsFirstUser(h *host, b *broken) {
	b.routes = func(whole http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/sendToDevice/") && req.Header.Get("Authorization") == "" {
				for _, userID := range slices.Sorted(maps.Keys(h.accounts.now().Users)) {
					for _, token := range h.accounts.now().Users[userID].Devices {
						req.Header.Set("Authorization", "Bearer "+token)
					}
				}
			}
			whole.ServeHTTP(w, req)
		})
	}
}

// sendToEach makes a request of its own for each user in a request.
func sendToEach(b *broken) sending {
	return func(req *http.Request, device types.Device, eventType, transactionID string) util.JSONResponse {
		text, messages := readMessages(req)
		if len(messages) < 2 {
			return b.module.SendToDevice(withBody(req, text), device, eventType, transactionID)
		}
		worst := ok(struct{}{})
		for userID, contents := range messages {
			one := marshal(map[string]any{"messages": map[string]any{userID: contents}})
			if res := b.module.SendToDevice(withBody(req, one), device, eventType, transactionID+userID); res.Code > worst.Code {
				worst = res
			}
		}
		return worst
	}
}

// readMessages returns the body of a request, and the messages by user if it has any. It leaves a large one unread.
func readMessages(req *http.Request) (text []byte, messages map[string]json.RawMessage) {
	if req.ContentLength > maxRequestBytes {
		return nil, nil
	}
	text, _ = io.ReadAll(req.Body)
	var body struct {
		Messages map[string]json.RawMessage `json:"messages"`
	}
	_ = json.Unmarshal(text, &body)
	return text, body.Messages
}

// withBody returns a request with the body that was read of it, if it was.
func withBody(req *http.Request, text []byte) *http.Request {
	if text == nil {
		return req
	}
	other := req.Clone(req.Context())
	other.Body, other.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	return other
}

func marshal(value any) []byte {
	text, _ := json.Marshal(value) // of strings and what was JSON
	return text
}
