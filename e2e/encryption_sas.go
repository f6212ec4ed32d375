//go:build goolm

package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/crypto/verificationhelper"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// sasUser is someone in front of a device who compares emojis with someone else.
type sasUser struct {
	helper *verificationhelper.VerificationHelper
	store  verificationhelper.VerificationStore
	steps  chan sasStep
}

// sasStep is something that the device shows.
type sasStep struct {
	what string
	txn  id.VerificationTransactionID
	// detail holds the emojis, or why the verification was cancelled.
	detail string
}

func newSASUser(t testing.TB, d *EncryptedDevice) *sasUser {
	t.Helper()
	u := &sasUser{store: verificationhelper.NewInMemoryVerificationStore(), steps: make(chan sasStep, 100)}
	u.helper = verificationhelper.NewVerificationHelper(d.Client.Client, d.machine, u.store, u, false, false, true)
	if err := u.helper.Init(d.ctx); err != nil {
		t.Fatal(err)
	}
	return u
}

// VerifyBySAS lets the users of two devices verify one another. A message of theirs that overtakes another one, or comes twice, makes the
// library cancel it.
func VerifyBySAS(t testing.TB, a, b *EncryptedDevice) {
	t.Helper()
	if a.DeviceID == b.DeviceID {
		t.Fatal("the library takes a request of a device with its own device ID for its own, whoever's it is")
	}
	var txn id.VerificationTransactionID
	a.must(t, func(ctx context.Context) (err error) {
		txn, err = a.sas.helper.StartVerification(ctx, b.UserID)
		return err
	})
	b.sas.await(t, "requested", txn)
	b.must(t, func(ctx context.Context) error { return b.sas.helper.AcceptVerification(ctx, txn) })
	a.sas.await(t, "ready", txn)
	b.sas.await(t, "ready", txn)
	a.must(t, func(ctx context.Context) error { return a.sas.helper.StartSAS(ctx, txn) })
	if one, other := a.sas.await(t, "emojis", txn), b.sas.await(t, "emojis", txn); one != other {
		t.Fatalf("%s shows %s, %s shows %s", a, one, b, other)
	}
	a.must(t, func(ctx context.Context) error { return a.sas.helper.ConfirmSAS(ctx, txn) })
	// What the other one sends then, two messages at once, waits for it and comes in one /sync.
	a.Offline()
	within(t, silentRecovery, "the confirmation arrives", func() (arrived bool, saw any) {
		saw = b.act(func(ctx context.Context) error {
			verification, err := b.sas.store.GetVerificationTransaction(ctx, txn)
			arrived = verification.ReceivedTheirMAC
			return err
		})
		return arrived, saw
	})
	b.must(t, func(ctx context.Context) error { return b.sas.helper.ConfirmSAS(ctx, txn) })
	a.Online()
	a.sas.await(t, "done", txn)
	b.sas.await(t, "done", txn)
}

// await waits for the next step of a verification, and fails the test if it is another one.
func (u *sasUser) await(t testing.TB, what string, txn id.VerificationTransactionID) (detail string) {
	t.Helper()
	timeout := time.After(silentRecovery)
	var others []sasStep
	for {
		select {
		case step := <-u.steps:
			if step.txn != txn {
				others = append(others, step)
				continue // one that another device has accepted
			}
			if step.what != what {
				t.Fatalf("want the step %q of the verification, got %q %s", what, step.what, step.detail)
			}
			return step.detail
		case <-timeout:
			t.Fatalf("the step %q of the verification did not come; others that did: %v", what, others)
		}
	}
}

// VerificationRequested is called by the library, as are those below.
func (u *sasUser) VerificationRequested(_ context.Context, txn id.VerificationTransactionID, _ id.UserID, _ id.DeviceID) {
	u.steps <- sasStep{what: "requested", txn: txn}
}

// VerificationReady comes when both devices have agreed to go on.
func (u *sasUser) VerificationReady(_ context.Context, txn id.VerificationTransactionID, _ id.DeviceID, _, _ bool, _ *verificationhelper.QRCode) {
	u.steps <- sasStep{what: "ready", txn: txn}
}

// VerificationCancelled comes when something is wrong, and on the devices that were asked in vain.
func (u *sasUser) VerificationCancelled(_ context.Context, txn id.VerificationTransactionID, code event.VerificationCancelCode, reason string) {
	u.steps <- sasStep{what: "cancelled", txn: txn, detail: string(code) + ": " + reason}
}

// VerificationDone comes when the other device has said so.
func (u *sasUser) VerificationDone(_ context.Context, txn id.VerificationTransactionID, _ event.VerificationMethod) {
	u.steps <- sasStep{what: "done", txn: txn}
}

// ShowSAS comes when there is something to compare.
func (u *sasUser) ShowSAS(_ context.Context, txn id.VerificationTransactionID, emojis []rune, _ []string, _ []int) {
	u.steps <- sasStep{what: "emojis", txn: txn, detail: string(slices.Clone(emojis))}
}
