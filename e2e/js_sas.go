package e2e

import "testing"

// jsVerify lets the users of two devices compare emojis, and fails the test unless each device then takes the other for verified.
func jsVerify(t testing.TB, a, b *JSDevice) {
	t.Helper()
	var txn string
	a.must(t, "request", object{"user": b.UserID, "other": b.DeviceID}, &txn)
	step := object{"txn": txn}
	b.must(t, "accept", step, nil)
	a.must(t, "start", step, nil)
	both := func(command string, results ...any) {
		together(t, func() error { return a.do(t.Context(), command, step, results[0]) },
			func() error { return b.do(t.Context(), command, step, results[1]) })
	}
	var one, other string
	both("emojis", &one, &other)
	if one != other {
		t.Fatalf("%s shows %s, %s shows %s", a, one, b, other)
	}
	both("confirm", nil, nil)
	for _, pair := range [][2]*JSDevice{{a, b}, {b, a}} {
		eventually(t, pair[0].String()+" takes "+pair[1].String()+" for verified", func() (bool, any) {
			return pair[0].is(t, "trusts", object{"user": pair[1].UserID, "other": pair[1].DeviceID}), false
		})
	}
}
