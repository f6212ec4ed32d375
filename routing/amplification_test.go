package routing_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib/spec"
)

// What names a million of anything is refused before the names take a multiple of the memory that they arrived in.
func TestMemoryOfManyNames(t *testing.T) {
	million := func(format string) string {
		var names strings.Builder
		for i := range 1_000_000 {
			fmt.Fprintf(&names, format, i)
		}
		return strings.TrimSuffix(names.String(), ",")
	}
	for name, body := range map[string]string{
		"users without devices": `{"messages":{` + million(`"%x":{},`) + `}}`,
		"users, escaped":        `{"messages":{` + million(`"\u0061%x":{},`) + `}}`,
		"one user many times":   `{"messages":{` + strings.Repeat(`"@a:here":{},`, 1_000_000) + `"":{}}}`,
		"devices":               `{"messages":{"@a:here":{` + million(`"%x":{},`) + `}}}`,
		"other members":         `{"messages":{},` + million(`"%x":1,`) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			route, sender := newRoute(usualLimits)
			route.Limits.RequestBytes = 64 << 20
			req := put(strings.NewReader(body))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			res := route.Handle(req, alice, "m.type", "txn")
			runtime.ReadMemStats(&after)
			wantRefusal(t, res, sender, http.StatusRequestEntityTooLarge, spec.MatrixErrorCode("M_TOO_LARGE"))
			const names = 8 << 20 // of 10,000 users and devices
			if allocated := int(after.TotalAlloc - before.TotalAlloc); allocated > 2*len(body)+names {
				t.Errorf("%d bytes were allocated for %d", allocated, len(body))
			}
		})
	}
}
