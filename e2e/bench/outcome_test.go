package main

import (
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	thousand := make([]time.Duration, 1000)
	for i := range thousand {
		thousand[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		of   []time.Duration
		q    float64
		want time.Duration
	}{
		{hundred, 0, 1}, {hundred, 50, 50}, {hundred, 90, 90}, {hundred, 99, 99}, {hundred, 99.9, 100}, {hundred, 100, 100},
		{thousand, 99.9, 999}, {thousand, 99, 990}, {hundred[:1], 50, 1}, {hundred[:3], 50, 2}, {hundred[:4], 50, 2}, {nil, 99, 0},
	} {
		if got := percentile(c.of, c.q); got != c.want {
			t.Errorf("percentile %v of %d: want %d, got %d", c.q, len(c.of), c.want, got)
		}
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{0: nil, 3: {3}, 2: {3, 1, 2}, 2.5: {4, 1, 3, 2}} {
		if got := median(values); got != want {
			t.Errorf("median of %v: want %v, got %v", values, want, got)
		}
	}
}

// Ten messages, one each 100 ms; only those of the second half count. Each takes 30 ms to the 200 and 50 ms to the receiver, but
// the one at 700 ms was sent 200 ms late, and the last arrives before its 200.
func TestOutcomeCountsFromTheDueTime(t *testing.T) {
	const ms = time.Millisecond
	l := newLedger(1, 1)
	for i := range 10 {
		due := time.Duration(i) * 100 * ms
		begun, arrived := due, due+50*ms
		if i == 7 {
			begun, arrived = due+200*ms, due+250*ms
		}
		if i == 9 {
			arrived = due + 10*ms
		}
		l.sent(0, sent{to: []int{0}, due: due, begun: begun, answered: begun + 30*ms, ok: true})
		l.got(0, []string{mark{l.load, 0, i}.String()}, arrived)
	}
	out := newOutcome(l, 500*ms, 500*ms, 0)
	if out.Delivered != 10 || out.Accepted != 10 {
		t.Errorf("want 10/s delivered and accepted, got %v and %v", out.Delivered, out.Accepted)
	}
	if out.Answer.Count != 5 || out.Answer.Max != 30 {
		t.Errorf("want 5 answers of 30 ms, got %+v", out.Answer)
	}
	if out.Delay.Count != 5 || out.Delay.P50 != 20 || out.Delay.Max != 20 || out.Delay.Min != 0 {
		t.Errorf("want delays of 20 ms from the 200, and one of 0, got %+v", out.Delay)
	}
	if out.FromDue.Max != 250 || out.FromDue.P50 != 50 || out.FromDue.Min != 10 {
		t.Errorf("want the delay of the late request from when it was due, got %+v", out.FromDue)
	}
	out.offered = 10
	if !out.carried() {
		t.Error("10/s were offered and delivered, and are not called carried")
	}
	out.offered = 11
	if out.carried() {
		t.Error("11/s are called carried")
	}
	if gaveUp := newOutcome(l, 500*ms, 500*ms, 400*ms); gaveUp.carried() || gaveUp.Delay.Count != 4 {
		t.Errorf("a load that gave up is called carried, or counted beyond that: %+v", gaveUp)
	}
}
