package hosttest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// inboundPromises are about the transactions that other servers send.
var inboundPromises = []Promise{
	{
		Name:  "edus-are-passed",
		Text:  "The m.direct_to_device EDUs of every transaction from another server are passed to ReceiveEDUs, whatever else is in it.",
		check: withRemote(edusArePassed),
	},
	{
		Name: "origins-are-authenticated",
		Text: "The origin that ReceiveEDUs is told is the server whose signature holds, whatever the transaction says of itself; " +
			"without such a signature nothing is passed.",
		check: withRemotes(2, originsAreAuthenticated),
	},
	{
		Name: "repetitions-are-stored-once",
		Text: "What another server sends again is stored once and answered with 200, be it the same transaction or the same message_id in another one, " +
			"at the same time or after a restart. Another server may use the same IDs.",
		check: withRemotes(2, repetitionsAreStoredOnce),
	},
	{
		Name: "edus-are-stored-before-the-answer",
		Text: "A transaction is answered with 200 once ReceiveEDUs has returned nil, and with a 5xx after an error, so that the other server sends " +
			"it again.",
		configure: func(c *todevicemodule.Config) { c.RequestTimeout = time.Second },
		check:     withRemote(edusAreStoredBeforeTheAnswer),
	},
	{
		Name: "limited-servers-are-told-to-wait",
		Text: "A transaction for which ReceiveEDUs returns consumers.ErrLimitExceeded is answered with 429 M_LIMIT_EXCEEDED.",
		configure: func(c *todevicemodule.Config) {
			c.Limits.OriginEDUsPerSecond, c.Limits.OriginEDUsBurst = 10, remote.MaxEDUs
		},
		check: withRemote(limitedServersAreToldToWait),
	},
	{
		Name:      "bodies-are-held",
		Text:      "HoldBody reads the body of every transaction from another server, before anything else does.",
		configure: func(c *todevicemodule.Config) { c.Limits.BodyBytes = smallRoom },
		check:     withRemotes(2, bodiesAreHeld),
	},
	{
		Name: "device-lists-are-marked-stale",
		Text: "MarkDeviceListStale makes the homeserver ask for the devices of another server's user again, unless it knows the device. " +
			"The module calls it for a key request.",
		check: withRemote(deviceListsAreMarkedStale),
	},
}

// typing is an EDU that is none of the module's business.
func typing(r *remote.Server) object {
	return object{"edu_type": spec.MTyping, "origin": r.Name, "content": object{
		"room_id": "!nowhere:" + r.Name, "user_id": r.User("mallory"), "typing": true,
	}}
}

func edusArePassed(ctx context.Context, tr *trial, r *remote.Server) error {
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	second, err := bob.login(ctx, "SECOND")
	if err != nil {
		return err
	}
	err = tr.mustTransmit(ctx, r, tr.name("txn"),
		r.ToDevice(tr.name("id"), to(numbered(0), bob, second)),
		typing(r),
		r.ToDevice(tr.name("id"), messages{}.add(bob.UserID, "*", numbered(1))),
		object{"edu_type": "org.example.unknown", "origin": r.Name, "content": object{}},
		r.ToDevice(tr.name("id"), to(numbered(2), bob, second)),
	)
	if err != nil {
		return err
	}
	const sent = 4
	_, err = tr.transmitAs(ctx, r, remote.OwnTransaction{ // whatever it is answered
		ID:   tr.name("txn"),
		PDUs: []any{object{}, object{"room_id": "!nowhere:" + r.Name, "type": spec.MRoomMember, "content": "no object"}},
		EDUs: []any{r.ToDevice(tr.name("id"), to(numbered(sent-1), bob, second))},
	})
	if err != nil {
		return err
	}
	for _, device := range []*client{bob, second} {
		events, _, err := device.receive(ctx, "", sent)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Sender != r.User("mallory") || e.Type != "m.test" {
				return fmt.Errorf("want messages of type m.test from %s, got one of type %s from %s", r.User("mallory"), e.Type, e.Sender)
			}
		}
		if err = wantNumbers(device.DeviceID, events, 0, sent); err != nil {
			return err
		}
	}
	return nil
}

func originsAreAuthenticated(ctx context.Context, tr *trial, remotes []*remote.Server) error {
	r, victim := remotes[0], remotes[1]
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	for what, x := range map[string]remote.OwnTransaction{
		"without a signature":           {Unsigned: true},
		"signed with another key":       {WrongKey: true},
		"signed for another server":     {For: victim.Name},
		"signed in another one's place": {Header: func(h string) string { return strings.Replace(h, r.Name, victim.Name, 1) }},
	} {
		x.ID, x.EDUs = tr.name("txn"), []any{r.ToDevice(tr.name("id"), to(numbered(100), bob)), victim.ToDevice(tr.name("id"), to(numbered(101), bob))}
		a, err := tr.transmitAs(ctx, r, x)
		if err != nil {
			return err
		}
		if a.Status/100 != 4 {
			return fmt.Errorf("a transaction %s: want a 4xx, got %v", what, a)
		}
	}
	// The signature is good, and the sender not of the server that it is of.
	spoofed := r.ToDevice(tr.name("id"), to(numbered(102), bob))
	spoofed["content"].(object)["sender"] = alice.UserID
	if err = tr.mustTransmit(ctx, r, tr.name("txn"), victim.ToDevice(tr.name("id"), to(numbered(103), bob)), spoofed); err != nil {
		return err
	}
	return tr.wantAll(ctx, bob, 0)
}

func repetitionsAreStoredOnce(ctx context.Context, tr *trial, remotes []*remote.Server) error {
	r, other := remotes[0], remotes[1]
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	first, id := tr.name("txn"), tr.name("id")
	again := r.ToDevice(id, to(numbered(0), bob))
	const atOnce = 5
	err = together(atOnce, func(int) error { return tr.mustTransmit(ctx, r, first, again) })
	if err != nil {
		return err
	}
	for _, restart := range []func(context.Context) error{nil, tr.restart, tr.crash} {
		if restart != nil {
			if err = restart(ctx); err != nil {
				return err
			}
		}
		if err = tr.mustTransmit(ctx, r, first, again); err != nil {
			return err
		}
		if err = tr.mustTransmit(ctx, r, tr.name("txn"), again); err != nil {
			return err
		}
	}
	if err = tr.mustTransmit(ctx, other, first, other.ToDevice(id, to(numbered(1), bob))); err != nil {
		return fmt.Errorf("another server, with the same transaction ID: %w", err)
	}
	return tr.wantAll(ctx, bob, 2)
}

func edusAreStoredBeforeTheAnswer(ctx context.Context, tr *trial, r *remote.Server) error {
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	n := 0
	next := func() any { defer func() { n++ }(); return r.ToDevice(tr.name("id"), to(numbered(n), bob)) }

	// The database does not take it: what is not known to be stored may be so later.
	txnID, edus := tr.name("txn"), []any{next(), typing(r), next()}
	takeAway := fail[commitCall](tr.seam, storage.ErrTransient)
	a, err := tr.transmit(ctx, r, txnID, edus...)
	takeAway()
	if err == nil {
		err = a.wantFault("a transaction that can't be stored")
	}
	if err != nil {
		return err
	}
	if err = tr.retransmit(ctx, r, txnID, edus...); err != nil {
		return err
	}

	// The database has taken it, and can't say so.
	txnID, edus = tr.name("txn"), []any{next()}
	takeAway = after(tr.seam, func(context.Context, commitCall, error) error { return storage.ErrTransient })
	_, err = tr.transmit(ctx, r, txnID, edus...)
	takeAway()
	if err != nil {
		return err
	}
	if err = tr.retransmit(ctx, r, txnID, edus...); err != nil {
		return err
	}

	// The last that the homeserver does is to answer.
	if err = tr.mustTransmit(ctx, r, tr.name("txn"), next()); err != nil {
		return err
	}
	if err = tr.crash(ctx); err != nil {
		return err
	}
	return tr.wantAll(ctx, bob, n)
}

func limitedServersAreToldToWait(ctx context.Context, tr *trial, r *remote.Server) error {
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	total := 0
	next := func(n int) (edus []any) {
		for range n {
			edus = append(edus, r.ToDevice(tr.name("id"), to(numbered(total), bob)))
			total++
		}
		return edus
	}
	if err = tr.mustTransmit(ctx, r, tr.name("txn"), next(remote.MaxEDUs)...); err != nil {
		return err
	}
	txnID, edus := tr.name("txn"), next(remote.MaxEDUs/2) // which is five seconds' worth
	a, err := tr.transmit(ctx, r, txnID, edus...)
	if err != nil {
		return err
	}
	if a.Status != http.StatusTooManyRequests || a.errcode() != string(spec.ErrorLimitExceeded) {
		return fmt.Errorf("want 429 M_LIMIT_EXCEEDED, got %v", a)
	}
	if err = tr.retransmit(ctx, r, txnID, edus...); err != nil {
		return err
	}
	return tr.wantAll(ctx, bob, total)
}

// smallRoom is less than an operator may configure: it takes little to fill. Large bodies have three quarters of it.
const smallRoom = 1 << 20

// trickle is a body of white space of which some comes at once, and 80 KiB a second from then on, without an end.
type trickle struct {
	ctx   context.Context
	begun int // bytes
}

func (t *trickle) Read(p []byte) (int, error) {
	const atOnce, pause, bytes = 256 << 10, 50 * time.Millisecond, 4 << 10
	n := len(p)
	if t.begun >= atOnce {
		n = min(n, bytes)
		select {
		case <-t.ctx.Done():
			return 0, t.ctx.Err()
		case <-time.After(pause):
		}
	}
	t.begun += n
	return copy(p, strings.Repeat(" ", n)), nil
}

// A large body that has begun to arrive takes its room from the others, and loses it when another one needs it and it arrives too slowly. Whoever has not
// asked the module for room would wait for it.
func bodiesAreHeld(ctx context.Context, tr *trial, remotes []*remote.Server) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slow, quick := remotes[0], remotes[1]
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	txnID, edu := tr.name("txn"), slow.ToDevice(tr.name("id"), to(numbered(1), bob))
	type result struct {
		answer
		err error
	}
	answered := make(chan result, 1)
	begin := func() {
		go func() {
			a, err := tr.transmitAs(ctx, slow, remote.OwnTransaction{ID: txnID, EDUs: []any{edu}, Body: &trickle{ctx: ctx}})
			answered <- result{a, err}
		}()
	}
	begin()
	others := []any{quick.ToDevice(tr.name("id"), to(numbered(0), bob))}
	for range 2 { // which make it too large for a place among the small ones
		others = append(others, object{"edu_type": "org.example.unknown", "origin": quick.Name, "content": object{"padding": strings.Repeat("x", 60_000)}})
	}
	var a answer
	err = tr.await(ctx, "a body that takes room from others and arrives slowly is refused", func() (bool, any, error) {
		if err := tr.mustTransmit(ctx, quick, tr.name("txn"), others...); err != nil {
			return false, nil, fmt.Errorf("beside a body that arrives slowly: %w", err)
		}
		select {
		case got := <-answered:
			if got.err != nil { // who writes on finds the connection closed now and then, and not the answer
				begin()
			}
			a = got.answer
			return got.err == nil, got.err, nil
		default:
			return false, "no answer to it", nil
		}
	})
	if err != nil {
		return err
	}
	if err = a.want(http.StatusServiceUnavailable, "a body that takes room from others and arrives slowly"); err != nil {
		return err
	}
	if err = tr.mustTransmit(ctx, slow, txnID, edu); err != nil { // nothing of it was taken for processed
		return err
	}
	return tr.wantAll(ctx, bob, 2)
}

func deviceListsAreMarkedStale(ctx context.Context, tr *trial, r *remote.Server) error {
	bob, err := tr.register(ctx, "bob", "FIRST")
	if err != nil {
		return err
	}
	user := r.User("mallory")
	// A homeserver may have to know the user. What it answers is its own affair.
	if _, err = bob.do(ctx, http.MethodPost, "/keys/query", object{"device_keys": object{user: []string{}}}); err != nil {
		return err
	}
	before := len(r.Asked())
	request := r.ToDevice(tr.name("id"), to(object{"action": "request", "requesting_device_id": "UNKNOWN", "request_id": "1"}, bob))
	request["content"].(object)["type"] = types.RoomKeyRequest
	if err = tr.mustTransmit(ctx, r, tr.name("txn"), request); err != nil {
		return err
	}
	want := markStaleCall{user, "UNKNOWN"}
	err = tr.await(ctx, "the module calls MarkDeviceListStale", func() (bool, any, error) {
		got := calls[markStaleCall](tr.seam)
		return slices.Contains(got, want), got, nil
	})
	if err != nil {
		return err
	}
	err = tr.await(ctx, "the other server is asked for the user's devices", func() (bool, any, error) {
		asked := r.Asked()[before:]
		return slices.Contains(asked, user), asked, nil
	})
	if err != nil {
		return err
	}
	// The answer may take a moment to be taken down.
	return tr.await(ctx, "the other server is not asked for a device that is known", func() (bool, any, error) {
		before := len(r.Asked())
		err := tr.homeserver().MarkDeviceListStale(ctx, user, remote.KnownDevice)
		asked := r.Asked()[before:]
		return len(asked) == 0, asked, err
	})
}
