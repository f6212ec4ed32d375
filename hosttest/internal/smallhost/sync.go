package smallhost

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/routing"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	tokenPrefix = "s_"
	longestSync = 5 * time.Minute
)

// syncResponse is the part of a response to /sync that this host has something for.
type syncResponse struct {
	NextBatch string `json:"next_batch"`
	ToDevice  struct {
		Events []event `json:"events"`
	} `json:"to_device"`
}

type event struct {
	Sender  string          `json:"sender"`
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

// sync answers as soon as there is something to say, or the time is over. Without a since token that is at once.
func (h *host) sync(req *http.Request, device types.Device) util.JSONResponse {
	query := req.URL.Query()
	var after types.Position
	var over <-chan time.Time
	if since := query.Get("since"); since != "" {
		position, err := parseToken(since)
		if err != nil {
			return refuse(http.StatusBadRequest, spec.ErrorInvalidParam, "The since token is none of this server's. Leave it out.")
		}
		after = h.module.SinceForSync(position)
		h.module.AcknowledgeSync(device, after)
		milliseconds, _ := strconv.Atoi(query.Get("timeout"))
		over = time.After(min(time.Duration(milliseconds)*time.Millisecond, longestSync))
	}
	for last := over == nil; ; {
		woken := h.waiting.on(device) // before the queue is read: what comes later wakes
		messages, next, err := h.module.ReadForSync(req.Context(), device, after, h.module.LatestPosition(), nobodyIgnored)
		if err != nil {
			return routing.ErrorResponse(err)
		}
		if _, refusal := h.deviceOf(req); refusal != nil {
			return *refusal // what was read may be for another device of that ID
		}
		if len(messages) > 0 || last {
			h.module.HandedOver(device, messages)
			return ok(newSyncResponse(messages, next))
		}
		select {
		case <-woken:
		case <-over:
			last = true
		case <-req.Context().Done():
			last = true
		case <-h.running.Done():
			last = true
		}
	}
}

func newSyncResponse(messages []types.Message, next types.Position) (res syncResponse) {
	res.NextBatch = tokenPrefix + strconv.FormatInt(int64(next), 10)
	res.ToDevice.Events = make([]event, len(messages))
	for i, m := range messages {
		res.ToDevice.Events[i] = event{Sender: m.Sender, Type: m.Type, Content: m.Content}
	}
	return res
}

func parseToken(token string) (types.Position, error) {
	position, err := strconv.ParseInt(strings.TrimPrefix(token, tokenPrefix), 10, 64)
	return types.Position(position), err
}

// nobodyIgnored is what a host without account data knows of ignored users.
func nobodyIgnored(context.Context) ([]string, error) { return nil, nil }

// waiting are the devices whose /sync requests may be waiting. Its zero value is ready to use.
type waiting struct {
	mu    sync.Mutex
	woken map[types.Device]chan struct{}
}

// on returns a channel that is closed when the device is woken next.
func (w *waiting) on(device types.Device) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.woken == nil {
		w.woken = make(map[types.Device]chan struct{})
	}
	if w.woken[device] == nil {
		w.woken[device] = make(chan struct{})
	}
	return w.woken[device]
}

// wake ends the waiting of a device's requests.
func (w *waiting) wake(device types.Device) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if woken := w.woken[device]; woken != nil {
		close(woken)
		delete(w.woken, device)
	}
}
