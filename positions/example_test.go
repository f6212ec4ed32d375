package positions_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/positions"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// visits is a stream of one state: how often somebody came by, which is its position too.
type visits struct{ count atomic.Int64 }

func (v *visits) Latest(context.Context) (positions.Position, error) {
	return positions.Position(v.count.Load()), nil
}

func (v *visits) Complete(_ context.Context, _ types.Device, to positions.Position, _ positions.Limits) (positions.Part, error) {
	return positions.Part{JSON: fmt.Append(nil, to), Position: to}, nil
}

func (v *visits) Incremental(ctx context.Context, device types.Device, _, to positions.Position, limits positions.Limits) (positions.Part, error) {
	return v.Complete(ctx, device, to, limits)
}

// syncHandler is /sync of a homeserver of one's own, whose part of the token is always s1.
func syncHandler(registry *positions.Registry, device types.Device) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		timeout, _ := time.ParseDuration(req.FormValue("timeout") + "ms")
		waited := time.After(timeout)
		request := registry.Begin(device, positions.ParseToken(req.FormValue("since")))
		defer request.End()
		for waits := timeout > 0; ; {
			news, err := request.Read(req.Context())
			if err != nil {
				http.Error(w, `{"errcode":"M_UNKNOWN","error":"Send the same request again later."}`, http.StatusInternalServerError)
				return
			}
			if len(news.Parts) > 0 || !waits {
				response := map[string]any{"next_batch": news.NextBatch("s1")}
				for _, part := range news.Parts {
					response[part.Key] = part.JSON
				}
				_ = json.NewEncoder(w).Encode(response)
				return
			}
			select {
			case <-request.Woken():
			case <-waited:
				waits = false
			case <-req.Context().Done():
				return
			}
		}
	}
}

// A homeserver that is not Dendrite has a stream in its /sync.
func Example() {
	stream := &visits{}
	registry, err := positions.NewRegistry(positions.Stream{Name: "visits", Key: "org.example.visits", Provider: stream})
	if err != nil {
		fmt.Println(err)
		return
	}
	handler := syncHandler(registry, types.Device{UserID: "@bob:example.org", DeviceID: "PHONE"})
	sync := func(query string) {
		w := httptest.NewRecorder()
		handler(w, httptest.NewRequest(http.MethodGet, "/sync?"+query, nil))
		fmt.Print(w.Body)
	}
	sync("")
	sync("since=s1.visits-0&timeout=10")
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		sync("since=s1.visits-0&timeout=30000")
	}()
	stream.count.Add(1)
	registry.WakeAll()
	<-waits
	// Output:
	// {"next_batch":"s1.visits-0","org.example.visits":0}
	// {"next_batch":"s1.visits-0"}
	// {"next_batch":"s1.visits-1","org.example.visits":1}
}
