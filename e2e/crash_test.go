package e2e

import "testing"

// Killed four times while eight devices send to four: nothing that was answered with 200 is
// lost, nothing comes twice or out of order, although the clients repeat what had no answer.
func TestKilledUnderLoad(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		load := NewLoad(t, s, 8, 4)
		figures := load.Run(t, func() {
			for range 4 {
				load.Progress(t, 600)
				s.Restart(t)
			}
			load.Progress(t, 600)
		})
		t.Log(figures)
		if !figures.Good() {
			t.Errorf("after four kills: %s", figures)
		}
		if figures.Retried == 0 {
			t.Error("no request was repeated: the kills met no load")
		}
	})
}

// Stopped by its operator under the same load, and started again.
func TestStoppedUnderLoad(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		s := SharedServer(t, b)
		load := NewLoad(t, s, 8, 4)
		figures := load.Run(t, func() {
			for range 2 {
				load.Progress(t, 600)
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
				s.MustStart(t)
			}
			load.Progress(t, 600)
		})
		t.Log(figures)
		if !figures.Good() {
			t.Errorf("after two stops: %s", figures)
		}
	})
}
