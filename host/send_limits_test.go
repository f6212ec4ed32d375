package host

import "testing"

// One server is bounded in number and, unless it is a single one, in size. It takes nothing from another.
func TestBytesUnderWay(t *testing.T) {
	u := newUnderWay(3, 100)
	begin := func(origin string, bytes int, want bool) {
		t.Helper()
		if got := u.begin(origin, bytes); got != want {
			t.Errorf("%d bytes of %s: %v", bytes, origin, got)
		}
	}
	begin("large", 101, true)
	begin("large", 0, false)
	begin("many", 40, true)
	begin("many", 40, true)
	begin("many", 21, false)
	begin("many", 20, true)
	begin("many", 0, false)
	u.end("many", 40)
	begin("many", 41, false)
	begin("many", 40, true)
	u.end("large", 101)
	for _, bytes := range []int{40, 20, 40} {
		u.end("many", bytes)
	}
	if len(u.count) != 0 {
		t.Errorf("left is %v", u.count)
	}
}
