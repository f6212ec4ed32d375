package hosttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

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
		Text:  "Module.SendToDevice gets a request with its body still to be read, answers one with a body that is too large before it has arrived, and takes one with as many bytes as the configuration allows.",
		check: requestsArriveUnread,
	},
	{
		Name:  "answers-arrive-whole",
		Text:  "The client gets what Module.SendToDevice answers: the status, the body and the headers.",
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
	if err = gone.send(ctx, to(numbered(0), bob)); err != nil { // the homeserver may remember it
		return err
	}
	if err = gone.logout(ctx); err != nil {
		return err
	}
	tr.forget()
	const unknown = "M_UNKNOWN_TOKEN"
	for _, who := range []struct {
		client *client
		code   string
	}{
		{tr.nobody(), "M_MISSING_TOKEN"},
		{&client{tr: tr, token: alice.token + "x"}, unknown},
		{gone, unknown},
	} {
		a, err := who.client.put(ctx, tr.name("txn"), to(numbered(1), bob))
		if err != nil {
			return err
		}
		if a.Status != http.StatusUnauthorized || a.errcode() != who.code {
			return fmt.Errorf("with the token %q of %s %s: want 401 %s, got %v", who.client.token, who.client.UserID, who.client.DeviceID, who.code, a)
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
	return largestRequestArrives(ctx, tr, alice)
}

// largestRequestArrives sends a request with as many bytes as one may have, most of them white space.
func largestRequestArrives(ctx context.Context, tr *trial, alice *client) error {
	largest := tr.setup.Config.MaxRequestBytes
	body := fmt.Appendf(nil, `{"messages":{%q:{%q:{"n":0}}}}`, alice.UserID, alice.DeviceID)
	body = append(body, bytes.Repeat([]byte(" "), largest-len(body))...)
	a, err := alice.do(ctx, http.MethodPut, putPath(messageType, tr.name("txn")), body)
	if err == nil {
		err = a.want(http.StatusOK, fmt.Sprintf("a request with the %d bytes that it may have", largest))
	}
	if err != nil {
		return err
	}
	return alice.wantWaiting(ctx, "a request with as many bytes as it may have", 1)
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
	defer fail[userDevicesCall](tr.seam, errors.New("away"))()
	if a, err = alice.put(ctx, tr.name("txn"), to(numbered(0), bob)); err != nil {
		return err
	}
	if a.Status != http.StatusServiceUnavailable || a.errcode() != "M_UNKNOWN" || a.Header.Get("Retry-After") == "" {
		return fmt.Errorf("while the devices of a user can't be looked up: want 503 M_UNKNOWN with the header Retry-After, got %v with the headers %v", a, a.Header)
	}
	return nil
}
