package writer_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// No two messages share a position, and what is published covers every copy.
func TestCopiesHavePositionsOfTheirOwn(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		var devices []types.Device
		for i := range 5 {
			devices = append(devices, types.Device{UserID: "@bob:test", DeviceID: fmt.Sprint(i)})
		}
		before := f.Published()
		for range 2 {
			var s writer.Submission
			for n := range 3 {
				p := writer.Part{Sender: "@alice:test", Type: "m.a", EDUs: to("remote", fmt.Sprint(n))}
				for _, device := range devices[:2*n+1] {
					p.Copies = append(p.Copies, storage.Copy{Device: device, Content: []byte(`{}`)})
				}
				s.Parts = append(s.Parts, p)
			}
			if err := f.Submit(f.ctx, s); err != nil {
				t.Fatal(err)
			}
		}
		var positions []types.Position
		for _, device := range devices {
			messages, err := f.store.Messages(f.ctx, device, before, f.Published(), 100, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				positions = append(positions, m.Position)
			}
		}
		_, edus := f.line(t, "remote")
		for _, edu := range edus {
			positions = append(positions, edu.Position)
		}
		slices.Sort(positions)
		if distinct := slices.Compact(slices.Clone(positions)); len(positions) != 2*(9+3) || len(distinct) != len(positions) {
			t.Errorf("%d messages and EDUs have %d positions, want 24: %v", len(positions), len(distinct), positions)
		}
		if last := positions[len(positions)-1]; f.Published() != last {
			t.Errorf("published %d, want %d", f.Published(), last)
		}
	})
}
