package e2e

import "testing"

// An unmodified Dendrite on the other side gets each message once and in order, also after it was away, and
// what it sends arrives. What it sends itself it may send twice, each time under another message_id.
func TestUnmodifiedRemote(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := StartPair(t, b, Options{}, Options{Unmodified: true})
		alice, bob := Register(t, here, "alice"), Register(t, there, "bob")
		if err := there.Stop(); err != nil {
			t.Fatal(err)
		}
		ours, theirs := NewJournal(), NewJournal()
		ours.Send(t.Context(), t, alice, 0, 50, bob)
		there.MustStart(t)
		ours.Collect(t, bob, "", silentRecovery)
		ours.WantGood(t, "to an unmodified Dendrite")
		wantOutboxEmpty(t, here, there)
		theirs.Send(t.Context(), t, bob, 0, 50, alice)
		theirs.Collect(t, alice, "", silentRecovery)
		if figures := theirs.Check(); figures.Lost > 0 {
			t.Errorf("from an unmodified Dendrite: %s", figures)
		}
	})
}
