package routing_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/internal/limiter"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Beyond the rate a device's key requests reach no other user any more, and are answered 200 all the same. Its own user's
// devices, other devices and other messages are not concerned.
func TestKeyRequestRate(t *testing.T) {
	const burst = 5
	route, sender := newRoute(usualLimits)
	var err error
	if route.KeyRequests, err = limiter.New[types.Device](1e-9, burst); err != nil {
		t.Fatal(err)
	}
	send := func(device types.Device, eventType, txn, users string) (reached string) {
		t.Helper()
		sender.messages = nil
		wantOK(t, route.Handle(put(strings.NewReader(`{"messages":{`+users+`}}`)), device, eventType, txn))
		m := sender.messages[0]
		if m.Transaction.TransactionID != txn {
			t.Errorf("the transaction is %v", m.Transaction)
		}
		return fmt.Sprint(len(m.Targets), " local and ", len(m.EDUs), " remote")
	}
	const (
		many   = `"@alice:here":{"*":{}},"@bob:here":{"A":{},"B":{}},"@carol:there":{"*":{}},"@dan:here":{"A":{},"B":{},"C":{},"D":{}}`
		ours   = `"@alice:here":{"A":{},"B":{},"*":{}}`
		toBob  = `"@bob:here":{"A":{}}`
		afar   = `"@carol:there":{"A":{}}`
		asking = types.RoomKeyRequest
	)
	// Of bob's two, carol's one and dan's four devices five are within the burst.
	if got := send(alice, asking, "1", many); got != "5 local and 1 remote" {
		t.Errorf("the first request reached %s", got)
	}
	if got := send(alice, asking, "2", toBob+","+afar); got != "0 local and 0 remote" {
		t.Errorf("a request beyond the burst reached %s", got)
	}
	if got := send(alice, asking, "3", ours); got != "3 local and 0 remote" {
		t.Errorf("a request to the own user's devices reached %s", got)
	}
	if got := send(alice, "m.room.encrypted", "4", toBob+","+afar); got != "1 local and 1 remote" {
		t.Errorf("another message reached %s", got)
	}
	laptop := types.Device{UserID: alice.UserID, DeviceID: "LAPTOP"}
	if got := send(laptop, asking, "5", toBob); got != "1 local and 0 remote" {
		t.Errorf("another device's request reached %s", got)
	}
}

// A request that is not stored is sent again, and then reaches everybody whom it would have reached at first.
func TestKeyRequestThatIsNotStoredCountsForNothing(t *testing.T) {
	const burst = 4
	route, sender := newRoute(usualLimits)
	var err error
	if route.KeyRequests, err = limiter.New[types.Device](1e-9, burst); err != nil {
		t.Fatal(err)
	}
	send := func(content string, want int) {
		t.Helper()
		sender.messages = nil
		body := `{"messages":{"@alice:here":{"A":{}},"@bob:here":{"A":{},"B":{},"C":{}},"@carol:there":{"A":` + content + `}}}`
		if res := route.Handle(put(strings.NewReader(body)), alice, types.RoomKeyRequest, "1"); res.Code != want {
			t.Errorf("the answer is %d %v, want %d", res.Code, res.JSON, want)
		}
	}
	send(`{"number":-0.5}`, http.StatusBadRequest)
	sender.send = func(context.Context) error { return writer.ErrUnavailable }
	for range 2 {
		send(`{}`, http.StatusServiceUnavailable)
	}
	sender.send = nil
	for _, want := range []string{"4 local and 1 remote", "1 local and 0 remote"} { // alice's own is not counted
		send(`{}`, http.StatusOK)
		if m := sender.messages[0]; fmt.Sprint(len(m.Targets), " local and ", len(m.EDUs), " remote") != want {
			t.Errorf("it reached %d local and %d remote devices, want %s", len(m.Targets), len(m.EDUs), want)
		}
	}
}
