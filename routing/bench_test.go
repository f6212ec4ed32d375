package routing_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkHandle is what a request costs before its message is stored, to 1, 20 and 1,000 devices with
// 800 bytes for each.
func BenchmarkHandle(b *testing.B) {
	for _, devices := range []int{1, 20, 1000} {
		b.Run(fmt.Sprint(devices), func(b *testing.B) {
			body := bodyTo(devices)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				route, sender := newRoute(usualLimits)
				if res := route.Handle(put(bytes.NewReader(body)), alice, "m.type", "txn"); res.Code != http.StatusOK || len(sender.messages) != 1 {
					b.Fatalf("%+v", res)
				}
			}
		})
	}
}

// bodyTo is a request's body to so many devices of one user each.
func bodyTo(devices int) []byte {
	parts := make([]string, devices)
	for i := range parts {
		parts[i] = fmt.Sprintf(`"@user%d:here":{"DEVICE%d":{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":{"key":{"body":%q,"type":0}}}}`,
			i, i, strings.Repeat("x", 700))
	}
	return []byte(`{"messages":{` + strings.Join(parts, ",") + `}}`)
}
