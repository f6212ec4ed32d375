package storagetest

import (
	"context"
	"math"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func positionTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"claims only move forward":   claimMonotonic,
		"the last possible position": claimOverflow,
		"claim without identity":     claimNobody,
		"state of an ended context":  stateCancelled,
	}
}

func claimMonotonic(f *fixture) {
	before := f.last
	for _, c := range []struct {
		name            string
		atLeast, wanted types.Position
	}{
		{"behind", 5, before + 1},
		{"just behind", before + 1, before + 2},
		{"one ahead", before + 3, before + 3},
		{"far ahead", 1 << 50, 1 << 50},
		{"zero", 0, 1<<50 + 1},
		{"negative", -7, 1<<50 + 2},
	} {
		last, err := f.store.Claim(f.ctx, c.name, c.atLeast)
		f.must(err)
		if last != c.wanted {
			f.Errorf("%s: the claim returned %d, want %d", c.name, last, c.wanted)
		}
		f.wantState(storage.State{Writer: c.name, Last: last})
	}
	f.writer, f.last = "negative", 1<<50+2
	f.send(alice, 1)
}

func claimOverflow(f *fixture) {
	last, err := f.store.Claim(f.ctx, "second", math.MaxInt64)
	f.must(err)
	if last != math.MaxInt64 {
		f.Errorf("the claim returned %d", last)
	}
	if _, err = f.store.Claim(f.ctx, "third", 0); err == nil {
		f.Error("a claim moved beyond the last position")
	} else {
		f.wantFinal(err)
	}
	f.wantState(storage.State{Writer: "second", Last: math.MaxInt64})
}

func claimNobody(f *fixture) {
	if _, err := f.store.Claim(f.ctx, "", 0); err == nil {
		f.Error("nobody claimed the store")
	}
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

func stateCancelled(f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := f.store.State(ctx)
	f.mustBe(err, context.Canceled)
	_, err = f.store.Claim(ctx, "second", 0)
	f.mustBe(err, context.Canceled)
	_, err = f.store.Messages(ctx, alice, 0, everLater, 1, nil)
	f.mustBe(err, context.Canceled)
	_, err = f.store.Stored(ctx, []types.TransactionKey{{Device: alice}})
	f.mustBe(err, context.Canceled)
	_, err = f.store.Acknowledge(ctx, []storage.Acknowledgement{{Device: alice, Through: 1}}, 1)
	f.mustBe(err, context.Canceled)
	for _, err := range Errors(ctx, f.store) {
		f.mustBe(err, context.Canceled)
	}
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}
