package smallhost

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

func syncFaults() map[string][]Fault {
	return map[string][]Fault{
		"no-since-deletes-nothing": {reading("what is read without since is acknowledged", func(b *broken, r *readCall) {
			if r.after == 0 && r.err == nil {
				b.module.AcknowledgeSync(r.device, r.next)
			}
		}, "repetitions-are-recognised")},
		"since-acknowledges": {
			{What: "nothing is acknowledged", breaks: func(_ *host, b *broken) {
				b.calls.acknowledgeSync = func(types.Device, types.Position) {}
			}},
			{What: "one device acknowledges for all of its user", breaks: func(h *host, b *broken) {
				b.calls.acknowledgeSync = func(device types.Device, since types.Position) {
					for _, device.DeviceID = range h.accounts.devices(device.UserID) {
						b.module.AcknowledgeSync(device, since)
					}
				}
			}},
		},
		"queues-come-in-batches": {
			reading("a response has all batches", func(b *broken, r *readCall) {
				for {
					more, next, err := b.module.ReadForSync(r.ctx, r.device, r.next, r.through, nobodyIgnored)
					if err != nil || len(more) == 0 {
						return
					}
					r.messages, r.next = append(r.messages, more...), next
				}
			}),
			reading("the newest message comes first", func(_ *broken, r *readCall) { slices.Reverse(r.messages) },
				"every-version-is-served", "who-is-valid-is-reached", "no-since-deletes-nothing"),
			reading("contents are decoded and encoded again", func(_ *broken, r *readCall) {
				r.messages = slices.Clone(r.messages) // which are the module's
				for i := range r.messages {
					var content any
					_ = json.Unmarshal(r.messages[i].Content, &content)
					r.messages[i].Content = marshal(content)
				}
			}),
			reading("only the first batch is ever handed out", func(_ *broken, r *readCall) { r.next = max(r.next, r.through) }),
		},
		"positions-are-the-modules": {
			reading("the host counts on by itself", func(_ *broken, r *readCall) { r.next++ }, "since-acknowledges"),
			reading("a response without messages has the newest position", func(b *broken, r *readCall) {
				if len(r.messages) == 0 {
					r.next = b.module.LatestPosition()
				}
			}),
		},
		"waiting-devices-are-woken": {
			{What: "nobody is woken", breaks: func(_ *host, b *broken) {
				b.host.wakeDevices = func(types.Position, []writer.Wakeup) {}
			}},
			{What: "one device of each user is woken", breaks: func(h *host, b *broken) {
				b.host.wakeDevices = func(position types.Position, wakeups []writer.Wakeup) {
					wakeups = slices.Clone(wakeups)
					for i := range wakeups {
						wakeups[i].DeviceIDs = wakeups[i].DeviceIDs[:1]
					}
					h.WakeDevices(position, wakeups)
				}
			}},
			{What: "who reads is not woken", breaks: wakeNoReaders},
			{What: "everybody is answered when somebody is woken", breaks: answerEverybody},
		},
		"waking-does-not-block": {{What: "the module waits until those who were woken have read", breaks: wakeUntilRead}},
		"wake-ups-come-in-order": {
			{What: "the position is ahead of what can be read", breaks: func(_ *host, b *broken) {
				b.asks.wakeDevices = func(position types.Position, wakeups []writer.Wakeup) { b.asks.Host.WakeDevices(position+1, wakeups) }
			}},
			{What: "each second wake-up overtakes the first", Also: []string{"waiting-devices-are-woken", "waking-does-not-block"}, breaks: overtake},
		},
		"each-message-comes-once": {reading("next_batch covers what came after the queue was read", func(b *broken, r *readCall) {
			const pause, pauses = 10 * time.Millisecond, 100 // until something comes, if anything does
			if len(r.messages) > 0 && r.next == r.through {
				for n := 0; n < pauses && b.module.LatestPosition() == r.through; n++ {
					time.Sleep(pause)
				}
				r.next = b.module.LatestPosition()
			}
		})},
		"tokens-ahead-hide-nothing": {{What: "since is taken as it comes", breaks: func(_ *host, b *broken) {
			b.calls.sinceForSync = func(position types.Position) types.Position { return position }
		}}},
		"failed-reads-are-5xx": {reading("a queue that can't be read is empty", func(_ *broken, r *readCall) {
			if r.err != nil {
				r.next, r.err = r.through, nil
			}
		})},
		"handed-over-is-told": {{What: "nothing is told of what is handed over", breaks: func(_ *host, b *broken) {
			b.calls.handedOver = func(types.Device, []types.Message) {}
		}}},
	}
}

// readCall is a call of ReadForSync, with what came of it.
type readCall struct {
	ctx            context.Context
	device         types.Device
	after, through types.Position
	messages       []types.Message
	next           types.Position
	err            error
}

// reading is a fault in what is made of a call of ReadForSync.
func reading(what string, change func(*broken, *readCall), also ...string) Fault {
	return Fault{What: what, Also: also, breaks: func(_ *host, b *broken) {
		b.calls.readForSync = func(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error) {
			r := &readCall{ctx: ctx, device: device, after: after, through: through}
			r.messages, r.next, r.err = b.module.ReadForSync(ctx, device, after, through, ignored)
			change(b, r)
			return r.messages, r.next, r.err
		}
	}}
}

// answerEverybody ends every request that waits whenever a device is woken.
func answerEverybody(h *host, b *broken) {
	var mu sync.Mutex
	end := func() {}
	b.routes = func(whole http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasSuffix(req.URL.Path, "/sync") {
				ctx, cancel := context.WithCancel(req.Context())
				defer cancel()
				mu.Lock()
				others := end
				end = func() { cancel(); others() }
				mu.Unlock()
				req = req.WithContext(ctx)
			}
			whole.ServeHTTP(w, req)
		})
	}
	b.host.wakeDevices = func(position types.Position, wakeups []writer.Wakeup) {
		h.WakeDevices(position, wakeups)
		mu.Lock()
		defer mu.Unlock()
		end()
		end = func() {}
	}
}

// overtake has the module hold a wake-up back until after the next.
func overtake(_ *host, b *broken) {
	var late func()
	b.asks.wakeDevices = func(position types.Position, wakeups []writer.Wakeup) {
		if late == nil {
			late = func() { b.asks.Host.WakeDevices(position, wakeups) }
			return
		}
		b.asks.Host.WakeDevices(position, wakeups)
		late()
		late = nil
	}
}

// wakeNoReaders forgets to wake whose queue is being read, as a host does that listens only afterwards.
func wakeNoReaders(h *host, b *broken) {
	var mu sync.Mutex
	readers := make(map[types.Device]int)
	count := func(device types.Device, n int) {
		mu.Lock()
		defer mu.Unlock()
		readers[device] += n
	}
	b.calls.readForSync = func(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error) {
		count(device, 1)
		defer count(device, -1)
		return b.module.ReadForSync(ctx, device, after, through, ignored)
	}
	b.host.wakeDevices = func(position types.Position, wakeups []writer.Wakeup) {
		mu.Lock()
		defer mu.Unlock()
		for _, w := range wakeups {
			w.DeviceIDs = slices.DeleteFunc(slices.Clone(w.DeviceIDs), func(deviceID string) bool {
				return readers[types.Device{UserID: w.UserID, DeviceID: deviceID}] > 0
			})
			h.WakeDevices(position, []writer.Wakeup{w})
		}
	}
}

// wakeUntilRead keeps the module waiting until nobody reads a queue.
func wakeUntilRead(h *host, b *broken) {
	var reads sync.RWMutex
	b.calls.readForSync = func(ctx context.Context, device types.Device, after, through types.Position, ignored streams.IgnoredSenders) ([]types.Message, types.Position, error) {
		reads.RLock()
		defer reads.RUnlock()
		return b.module.ReadForSync(ctx, device, after, through, ignored)
	}
	b.host.wakeDevices = func(position types.Position, wakeups []writer.Wakeup) {
		h.WakeDevices(position, wakeups)
		reads.Lock()
		defer reads.Unlock()
	}
}
