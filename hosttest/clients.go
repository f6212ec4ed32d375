package hosttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// clientPromises are about PUT /sendToDevice.
var clientPromises = []Promise{
	{
		Name:  "every-version-is-served",
		Text:  "PUT /_matrix/client/{r0,v3,unstable}/sendToDevice/{eventType}/{txnId} goes to Module.SendToDevice.",
		check: everyVersionIsServed,
	},
	{
		Name:  "paths-are-decoded",
		Text:  "Module.SendToDevice gets the event type and the transaction ID percent-decoded, each of one segment of the path.",
		check: pathsAreDecoded,
	},
	{
		Name:  "guests-may-send",
		Text:  "Guests may send messages to devices, and receive them.",
		check: guestsMaySend,
	},
	{
		Name:  "only-devices-send",
		Text:  "A request without the access token of a device that exists is answered 401, and stores nothing.",
		check: onlyDevicesSend,
	},
	{
		Name:  "requests-arrive-unread",
		Text:  "Module.SendToDevice gets a request with its body still to be read, and answers one with a body that is too large before it has arrived.",
		check: requestsArriveUnread,
	},
	{
		Name: "answers-arrive-whole",
		Text: "The client gets what Module.SendToDevice answers: the status, the body and the headers.",
		configure: func(config *todevicemodule.Config) {
			config.RequestTimeout = time.Second // the database will be away for all of it
		},
		check: answersArriveWhole,
	},
	{
		Name:  "an-accepted-message-is-durable",
		Text:  "A message that was answered 200 is delivered, even if the homeserver crashes in the next instant; otherwise the answer is a 5xx (I1).",
		check: anAcceptedMessageIsDurable,
	},
	{
		Name:  "a-request-is-one-commit",
		Text:  "A request is stored whole or not at all: its messages for this server's devices, those for other servers and its transaction ID (I2).",
		check: aRequestIsOneCommit,
	},
	{
		Name:  "repetitions-are-recognised",
		Text:  "A device that repeats a request is answered 200, and the message comes once: at once, after a restart, and with a new access token. Other devices may use the same transaction ID (I3).",
		check: repetitionsAreRecognised,
	},
	{
		Name:  "who-is-valid-is-reached",
		Text:  "What is accepted reaches everyone valid in it, whoever else is named; what is rejected stores nothing (I11).",
		check: whoIsValidIsReached,
	},
}

// stores returns how many commits have stored something since the calls were forgotten.
func (tr *trial) stores() (n int) {
	for _, c := range calls[commitCall](tr.seam) {
		if len(c.Deliveries)+len(c.EDUs)+len(c.Transactions) > 0 {
			n++
		}
	}
	return n
}

func everyVersionIsServed(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	for n, version := range []string{"v3", "r0", "unstable"} {
		path := "/_matrix/client/" + version + putPath(messageType, tr.name("txn"))
		a, err := alice.do(ctx, http.MethodPut, path, object{"messages": to(numbered(n), bob)})
		if err != nil {
			return err
		}
		if err = a.want(http.StatusOK, "PUT "+path); err != nil {
			return err
		}
		if keys := tr.transactions(); len(keys) != n+1 {
			return fmt.Errorf("PUT %s: Module.SendToDevice was not called", path)
		}
	}
	events, _, err := bob.receive(ctx, "", 3)
	if err != nil {
		return err
	}
	return wantNumbers("of all versions", events, 0, 3)
}

// transactions returns the clients' requests that were stored, in their order.
func (tr *trial) transactions() (keys []types.TransactionKey) {
	for _, c := range calls[commitCall](tr.seam) {
		for _, t := range c.Transactions {
			keys = append(keys, t.TransactionKey)
		}
	}
	return keys
}

func pathsAreDecoded(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	const eventType, txnID = "org.example/a b+%2F?", "1/2 %41+é"
	if err = alice.must(ctx, http.MethodPut, putPath(eventType, txnID), object{"messages": to(numbered(0), bob)}, nil); err != nil {
		return err
	}
	want := types.TransactionKey{Device: alice.Device, EventType: eventType, TransactionID: txnID}
	if keys := tr.transactions(); len(keys) != 1 || keys[0] != want {
		return fmt.Errorf("a request of the event type %q and the transaction ID %q is stored as %+v", eventType, txnID, keys)
	}
	events, _, err := bob.receive(ctx, "", 1)
	if err == nil && (events[0].Type != eventType || events[0].Sender != alice.UserID) {
		err = fmt.Errorf("a message of the type %q of %s arrives as %+v", eventType, alice.UserID, events[0])
	}
	return err
}

func guestsMaySend(ctx context.Context, tr *trial) error {
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	guest, err := tr.newAccount(ctx, "/register?kind=guest", object{})
	if err != nil {
		return err
	}
	if err = guest.send(ctx, to(numbered(0), bob)); err != nil {
		return fmt.Errorf("a guest: %w", err)
	}
	if _, _, err = bob.receive(ctx, "", 1); err != nil {
		return err
	}
	if err = bob.send(ctx, to(numbered(1), guest)); err != nil {
		return err
	}
	events, _, err := guest.receive(ctx, "", 1)
	if err != nil {
		return fmt.Errorf("to a guest: %w", err)
	}
	return wantNumbers("to a guest", events, 1, 2)
}

func onlyDevicesSend(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	gone, err := alice.login(ctx, "GONE")
	if err != nil {
		return err
	}
	if err = gone.send(ctx, to(numbered(0), bob)); err != nil { // who may be remembered
		return err
	}
	if err = gone.logout(ctx); err != nil {
		return err
	}
	tr.forget()
	for code, c := range map[string]*client{
		"M_MISSING_TOKEN": tr.nobody(),
		"M_UNKNOWN_TOKEN": {tr: tr, Device: alice.Device, token: alice.token + "x"},
		// And one that was good until now.
		"M_UNKNOWN_TOKEN ": gone,
	} {
		a, err := c.put(ctx, tr.name("txn"), to(numbered(1), bob))
		if err != nil {
			return err
		}
		if a.Status != http.StatusUnauthorized || a.errcode()+" " != code && a.errcode() != code {
			return fmt.Errorf("with the token %.10q: want 401 %s, got %v", c.token, code, a)
		}
	}
	if n := tr.stores(); n > 0 {
		return fmt.Errorf("%d commits have stored something", n)
	}
	return nil
}

func requestsArriveUnread(ctx context.Context, tr *trial) error {
	alice, _, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	tr.forget()
	tooLong := int64(tr.setup.Config.MaxRequestBytes) + 1
	request, err := alice.announce(ctx, http.MethodPut, putPath(messageType, tr.name("txn")), tooLong)
	if err != nil {
		return err
	}
	defer request.giveUp()
	select {
	case <-request.asked:
		return fmt.Errorf("the homeserver reads the body of a request that announces %d bytes", tooLong)
	default:
	}
	got, err := request.answer(ctx)
	if err != nil {
		return err
	}
	if got.Status != http.StatusRequestEntityTooLarge || got.errcode() != "M_TOO_LARGE" {
		return fmt.Errorf("a request that announces %d bytes: want 413 M_TOO_LARGE, got %v", tooLong, got)
	}
	if n := tr.stores(); n > 0 {
		return fmt.Errorf("%d commits have stored something", n)
	}
	return nil
}

func answersArriveWhole(ctx context.Context, tr *trial) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	a, err := alice.do(ctx, http.MethodPut, putPath(messageType, tr.name("txn")), []byte("{"))
	if err != nil {
		return err
	}
	if a.Status != http.StatusBadRequest || a.errcode() != "M_NOT_JSON" {
		return fmt.Errorf("a body that is no JSON: want 400 M_NOT_JSON, got %v", a)
	}
	large := object{"large": make([]byte, tr.setup.Config.MaxMessageBytes)}
	if a, err = alice.put(ctx, tr.name("txn"), to(large, bob)); err != nil {
		return err
	}
	if a.Status != http.StatusRequestEntityTooLarge || a.errcode() != "M_TOO_LARGE" {
		return fmt.Errorf("a content that is too large: want 413 M_TOO_LARGE, got %v", a)
	}
	defer fail[commitCall](tr.seam, faulty.ErrLost)()
	if a, err = alice.put(ctx, tr.name("txn"), to(numbered(0), bob)); err != nil {
		return err
	}
	if a.Status != http.StatusServiceUnavailable || a.errcode() != "M_UNKNOWN" || a.Header.Get("Retry-After") == "" {
		return fmt.Errorf("while the database is away: want 503 M_UNKNOWN with the header Retry-After, got %v with the headers %v", a, a.Header)
	}
	return nil
}

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

// wantWaiting returns an error unless so many messages wait for the device.
func (c *client) wantWaiting(ctx context.Context, what string, n int) error {
	events, err := c.waiting(ctx)
	if err == nil && len(events) != n {
		err = fmt.Errorf("%s: want %d messages, got %v", what, n, numbersOf(events))
	}
	return err
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
		if !json.Valid(a.Body) {
			return errors.New("the answer is no JSON")
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
