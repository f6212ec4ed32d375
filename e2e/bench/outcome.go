package main

import (
	"math"
	"slices"
	"time"
)

// outcome is what a load found within the time that counts.
type outcome struct {
	Delivered float64 `json:"delivered_per_second"` // copies
	Accepted  float64 `json:"accepted_per_second"`  // copies
	// Answer is how long requests took, Delay how long copies took from the 200 to the /sync response that has them (0 if
	// they were faster than the 200), and FromDue from when the request was to be made.
	Answer  spread `json:"answer"`
	Delay   spread `json:"delay"`
	FromDue spread `json:"from_due"`
	Wrong   wrong  `json:"wrong"`
	// Refused is how many requests were not answered 200, Refusal one of the answers.
	Refused int    `json:"refused,omitempty"`
	Refusal string `json:"refusal,omitempty"`
	// GaveUp says that the load ended early, since too much was on its way.
	GaveUp bool `json:"gave_up,omitempty"`

	offered float64 // copies a second, 0 for as many as go
}

// newOutcome counts what was done after from and for length. If the load gave up, which is not at 0, all until then counts.
func newOutcome(book *ledger, from, length, gaveUp time.Duration) *outcome {
	deliveries, w := book.check()
	out := &outcome{Wrong: w, GaveUp: gaveUp > 0}
	if out.GaveUp {
		from, length = 0, gaveUp
	}
	counts := func(at time.Duration) bool { return at >= from && at < from+length }
	var answer, delay, fromDue []time.Duration
	accepted, delivered := 0, 0
	for _, o := range book.outgoing {
		for _, s := range o.sent {
			if s.ok && counts(s.answered) {
				accepted += len(s.to)
				answer = append(answer, s.answered-s.begun)
			}
		}
	}
	for _, d := range deliveries {
		if counts(d.at) {
			delivered++
		}
		if d.ok && counts(d.due) {
			delay = append(delay, max(0, d.at-d.answered))
			fromDue = append(fromDue, d.at-d.due)
		}
	}
	out.Delivered, out.Accepted = float64(delivered)/length.Seconds(), float64(accepted)/length.Seconds()
	out.Answer, out.Delay, out.FromDue = newSpread(answer), newSpread(delay), newSpread(fromDue)
	return out
}

// carried tells whether the server delivered what it was offered, as fast as that came.
func (o *outcome) carried() bool { return o.Delivered >= 0.95*o.offered && o.Refused == 0 && !o.GaveUp }

// spread is how durations lie, in milliseconds.
type spread struct {
	Count int     `json:"count"`
	Min   float64 `json:"min_ms"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99_9_ms"`
	Max   float64 `json:"max_ms"`
}

func newSpread(d []time.Duration) spread {
	slices.Sort(d)
	at := func(q float64) float64 { return milliseconds(percentile(d, q)) }
	return spread{len(d), at(0), at(50), at(90), at(99), at(99.9), at(100)}
}

// percentile returns the least of the sorted durations that q of a hundred do not exceed; 0 of none.
func percentile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted)) / 100))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// median returns the middle one, or the mean of the two in the middle; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
