package hosttest

import (
	"context"
	"fmt"
	"net/http"

	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
)

func anAcceptedMessageIsDurable(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	txnID := tr.name("txn")
	works := fail[commitCall](tr.seam, faulty.ErrRefused)
	a, err := alice.put(ctx, txnID, to(numbered(0), bob))
	works()
	if err != nil {
		return err
	}
	if err = a.wantFault("a message that could not be stored"); err != nil {
		return err
	}
	if err = bob.wantNothing(ctx, "a message that could not be stored"); err != nil {
		return err
	}
	if err = alice.sendAs(ctx, txnID, to(numbered(0), bob)); err != nil { // the same again
		return err
	}
	if err = tr.crash(ctx); err != nil {
		return fmt.Errorf("after a crash: %w", err)
	}
	events, _, err := bob.receive(ctx, "", 1)
	if err != nil {
		return fmt.Errorf("after a crash: %w", err)
	}
	return wantNumbers("after a crash", events, 0, 1)
}

func aRequestIsOneCommit(ctx context.Context, tr *trial) error {
	recipients, err := tr.registerEach(ctx, "bob", "carol", "dave")
	if err != nil {
		return err
	}
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	second, err := recipients[0].login(ctx, "SECOND")
	if err != nil {
		return err
	}
	recipients = append(recipients, second)
	everybody := to(numbered(0), recipients...).add("@erin:other.example.org", "FIRST", numbered(0))
	txnID := tr.name("txn")

	works := fail[commitCall](tr.seam, faulty.ErrRefused)
	a, err := alice.put(ctx, txnID, everybody)
	works()
	if err != nil {
		return err
	}
	if err = a.wantFault("a request that could not be stored"); err != nil {
		return err
	}
	for _, c := range recipients {
		if err = c.wantNothing(ctx, "a request that could not be stored"); err != nil {
			return err
		}
	}

	tr.forget()
	if err = alice.sendAs(ctx, txnID, everybody); err != nil {
		return err
	}
	if n := tr.stores(); n != 1 {
		return fmt.Errorf("a request is stored by %d commits", n)
	}
	for _, c := range calls[commitCall](tr.seam) {
		copies := 0
		for _, d := range c.Deliveries {
			copies += len(d.Copies)
		}
		if copies != len(recipients) || len(c.EDUs) != 1 || len(c.Transactions) != 1 {
			return fmt.Errorf("a request for %d devices here and one of another server is stored as %d messages, %d EDUs and %d transactions",
				len(recipients), copies, len(c.EDUs), len(c.Transactions))
		}
	}
	for _, c := range recipients {
		events, _, err := c.receive(ctx, "", 1)
		if err != nil {
			return err
		}
		if err = wantNumbers("a request for many", events, 0, 1); err != nil {
			return err
		}
	}
	return nil
}

func repetitionsAreRecognised(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	const atOnce = 20
	txnID := tr.name("txn")
	again := func(c *client) error { return c.sendAs(ctx, txnID, to(numbered(0), bob)) }
	if err = together(atOnce, func(int) error { return again(alice) }); err != nil {
		return fmt.Errorf("%d times at once: %w", atOnce, err)
	}
	if err = again(alice); err != nil {
		return fmt.Errorf("once more: %w", err)
	}
	renewed, err := alice.login(ctx, alice.DeviceID)
	if err != nil {
		return err
	}
	if err = again(renewed); err != nil {
		return fmt.Errorf("with a new access token: %w", err)
	}
	if err = tr.restart(ctx); err != nil {
		return err
	}
	if err = again(renewed); err != nil {
		return fmt.Errorf("after a restart: %w", err)
	}
	if err = bob.wantWaiting(ctx, "a request that was repeated", 1); err != nil {
		return err
	}
	second, err := renewed.login(ctx, "SECOND")
	if err != nil {
		return err
	}
	for _, c := range []*client{second, bob} {
		if err = again(c); err != nil {
			return fmt.Errorf("another device: %w", err)
		}
	}
	if err = bob.wantWaiting(ctx, "requests of three devices, each under the same transaction ID", 3); err != nil {
		return err
	}
	path := putPath("org.example.another", txnID)
	if err = renewed.must(ctx, http.MethodPut, path, object{"messages": to(numbered(0), bob)}, nil); err != nil {
		return err
	}
	return bob.wantWaiting(ctx, "another type under the same transaction ID", 4)
}

func whoIsValidIsReached(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	nobody := "@" + tr.name("nobody") + ":" + tr.setup.ServerName
	content := numbered(1)
	for n, others := range []messages{
		messages{}.add(nobody, "*", content).add(nobody, "FIRST", content),
		messages{}.add(bob.UserID, "NOSUCHDEVICE", content),
		messages{}.add("no user ID", "*", content).add("@bob", "FIRST", content).add("", "*", content),
	} {
		others.add(bob.UserID, bob.DeviceID, numbered(n))
		if err = alice.send(ctx, others); err != nil {
			return fmt.Errorf("beside somebody who is not there: %w", err)
		}
	}
	tr.forget()
	for _, body := range []string{
		`{"messages":[]}`, `{"messages":{"` + bob.UserID + `":{"FIRST":1}}}`, `{}`, `[]`,
		`{"messages":{"` + bob.UserID + `":{"FIRST":{"n":7}},"` + alice.UserID + `":{"FIRST":"no object"}}}`,
	} {
		a, err := alice.do(ctx, http.MethodPut, putPath(messageType, tr.name("txn")), []byte(body))
		if err != nil {
			return err
		}
		if a.Status != http.StatusBadRequest || a.errcode() == "" {
			return fmt.Errorf("the body %s: want 400 and a code, got %v", body, a)
		}
	}
	if n := tr.stores(); n > 0 {
		return fmt.Errorf("what is rejected: %d commits have stored something", n)
	}
	events, _, err := bob.receive(ctx, "", 3)
	if err != nil {
		return err
	}
	return wantNumbers("beside somebody who is not there", events, 0, 3)
}
