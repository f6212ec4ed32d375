package hosttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// outboundPromises are about the transactions to other servers.
var outboundPromises = []Promise{
	{
		Name:  "a-ring-makes-a-transaction",
		Text:  "Ring makes the homeserver begin a transaction to a destination that it does not leave alone.",
		check: withRemote(aRingMakesATransaction),
	},
	{
		Name:  "transactions-go-through-the-module",
		Text:  "Every transaction to another server goes through SendTransaction: what waits goes along, and no doorbell leaves the server.",
		check: withRemote(transactionsGoThroughTheModule),
	},
	{
		Name:  "destinations-are-reached",
		Text:  "Reach returns nil if the destination answers requests, be the homeserver leaving it alone or not, and an error otherwise.",
		check: withRemote(destinationsAreReached),
	},
	{
		Name:  "failures-are-told",
		Text:  "Deliver returns nil after the destination's 200 alone: what was not answered so is sent again.",
		check: withRemotes(len(failures), failuresAreTold),
	},
	{
		Name: "transactions-are-sent-as-they-are",
		Text: "Deliver sends the transaction under the ID and with the content that it is given: one that the destination may have already is the same " +
			"as before.",
		check: withRemote(transactionsAreSentAsTheyAre),
	},
	{
		Name: "refusals-are-told",
		Text: "After another answer than 200 deliver returns a gomatrix.HTTPError with its status, so that what the destination refuses stands aside, and " +
			"does not hold up the rest.",
		check: withRemote(refusalsAreTold),
	},
	{
		Name: "backoff-is-told",
		Text: "Backoff returns until when the homeserver leaves a destination alone after failures, or that it has given it up, and neither for one " +
			"that answers.",
		check: withRemotes(2, backoffIsTold),
	},
	{
		Name:  "revived-destinations-are-sent-to",
		Text:  "Revive makes the homeserver forget that it leaves a destination alone.",
		check: withRemote(revivedDestinationsAreSentTo),
	},
	{
		Name:  "remotes-are-noticed",
		Text:  "RemoteSeen is told of the requests of other servers, whatever they ask and whether or not their signature is good: one that failed is looked after as soon as it sends one.",
		check: withRemotes(len(ownRequests), remotesAreNoticed),
	},
	{
		Name:  "edus-arrive-once-and-in-order",
		Text:  "What is sent to another server arrives there once and in order, whatever it answers meanwhile. An EDU has one message_id for life.",
		check: withRemote(edusArriveOnceAndInOrder),
	},
	{
		Name:  "edus-outlive-a-restart",
		Text:  "What waits for another server is sent after a restart, and after a crash, without anything new.",
		check: withRemote(edusOutliveARestart),
	},
	{
		Name:  "destinations-do-not-wait-for-each-other",
		Text:  "No destination that is slow or dead holds up what is for another one.",
		check: withRemotes(3, destinationsDoNotWaitForEachOther),
	},
	{
		Name:  "nobody-is-rung-for-nothing",
		Text:  "The module calls Ring only while something waits for the destination.",
		alone: true, // for other checks' servers something may still wait
		check: withRemote(nobodyIsRungForNothing),
	},
}

// unavailable is the answer of a server that is about to start.
func unavailable() remote.Reply { return remote.Refuse(http.StatusServiceUnavailable, "M_UNKNOWN") }

func always(reply func() remote.Reply) func(*remote.Transaction) remote.Reply {
	return func(*remote.Transaction) remote.Reply { return reply() }
}

// leavesAlone tells for how long the homeserver says that it leaves the destination alone.
func (tr *trial) leavesAlone(r *remote.Server) time.Duration {
	until, givenUp := tr.homeserver().Backoff(r.Name)
	if givenUp {
		return math.MaxInt64
	}
	return max(0, time.Until(until))
}

// awaitLeftAlone waits until the homeserver says that it leaves the destination alone.
func (tr *trial) awaitLeftAlone(ctx context.Context, r *remote.Server) error {
	return tr.await(ctx, "Backoff tells that a destination that fails is left alone", func() (bool, any, error) {
		pause := tr.leavesAlone(r)
		return pause > 0, pause, nil
	})
}

const (
	// longPause is for how long a destination is to be left alone at least where a check tells that from what happens meanwhile.
	longPause = 6 * time.Second
	// untilLongPause is how long failures may take to lead to that. Pauses that double from a second take seven.
	untilLongPause = 45 * time.Second
)

// awaitLongPause returns for how long the destination is left alone after its failures, once that is long.
func (tr *trial) awaitLongPause(ctx context.Context, r *remote.Server) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, untilLongPause)
	defer cancel()
	const look = 20 * time.Millisecond
	for longest := time.Duration(0); ; {
		pause := tr.leavesAlone(r)
		if pause >= longPause {
			return pause, nil
		}
		longest = max(longest, pause)
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return 0, fmt.Errorf("a destination that fails is left alone for %s at the most, after %d transactions: %w", longest, len(r.Transactions()), ctx.Err())
		}
	}
}

func destinationsAreReached(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	reach := func() (bool, any, error) {
		err := tr.homeserver().Reach(ctx, r.Name)
		return err == nil, err, nil
	}
	if err = tr.await(ctx, "Reach reaches a server that answers", reach); err != nil {
		return err
	}
	r.Behave(always(unavailable))
	if err = alice.sendNumbered(ctx, deviceOf(r), 0, 1); err != nil {
		return err
	}
	if err = tr.awaitTransactions(ctx, r, 1); err != nil {
		return err
	}
	if err = tr.await(ctx, "Reach reaches a server that answers, while transactions to it fail", reach); err != nil {
		return err
	}
	if err = r.Close(); err != nil {
		return err
	}
	err = tr.homeserver().Reach(ctx, r.Name)
	if openErr := r.Open(ctx); openErr != nil {
		return openErr
	}
	if err == nil {
		return errors.New("Reach returns nil for a server that can't be reached")
	}
	return tr.await(ctx, "Reach reaches a server that is back", reach)
}

func aRingMakesATransaction(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	defer fail[ringCall](tr.seam, errHeldBack)() // those of the module
	if err = alice.sendNumbered(ctx, deviceOf(r), 0, 1); err != nil {
		return err
	}
	err = tr.await(ctx, "the module rings for what waits", func() (bool, any, error) {
		rings := calls[ringCall](tr.seam)
		return slices.Contains(rings, ringCall{r.Name}), rings, nil
	})
	if err != nil {
		return err
	}
	if n := len(r.Transactions()); n > 0 {
		return fmt.Errorf("%d transactions came before the homeserver was rung", n)
	}
	if err = tr.homeserver().Ring(ctx, r.Name); err != nil {
		return fmt.Errorf("Ring: %w", err)
	}
	return tr.awaitTransactions(ctx, r, 1)
}

// wantNoDoorbell returns an error if a doorbell has left the server.
func wantNoDoorbell(r *remote.Server) error {
	for _, x := range r.Transactions() {
		for _, e := range x.EDUs {
			var edu gomatrixserverlib.EDU
			if err := json.Unmarshal(e.Raw, &edu); err != nil {
				return err
			}
			if outbox.IsDoorbell(edu) {
				return fmt.Errorf("transaction %s has a doorbell in it", x.ID)
			}
		}
	}
	return nil
}

func transactionsGoThroughTheModule(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	bob := deviceOf(r)
	if err = alice.sendNumbered(ctx, bob, 0, 3); err != nil {
		return err
	}
	_, arrivedErr := tr.awaitAt(ctx, r, 3)
	if err = errors.Join(wantNoDoorbell(r), arrivedErr); err != nil {
		return err
	}
	for _, m := range r.Messages() {
		if m.Sender != alice.UserID || m.Type != messageType || m.Origin != tr.setup.ServerName || m.UserID != bob.UserID || m.DeviceID != bob.DeviceID {
			return fmt.Errorf("want a message of type %s from %s for %s, got type %s from %s for %s of origin %s",
				messageType, alice.UserID, bob.UserID, m.Type, m.Sender, m.UserID, m.Origin)
		}
	}
	// Nothing waits for this one.
	if err = tr.homeserver().Ring(ctx, r.Name); err != nil {
		return fmt.Errorf("Ring: %w", err)
	}
	if err = alice.sendNumbered(ctx, bob, 3, 6); err != nil {
		return err
	}
	return errors.Join(tr.wantAt(ctx, r, 6), wantNoDoorbell(r))
}

func transactionsAreSentAsTheyAre(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	r.Script(remote.ProcessAndDrop())
	if err = alice.sendNumbered(ctx, deviceOf(r), 0, 1); err != nil {
		return err
	}
	if err = tr.awaitTransactions(ctx, r, 1); err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, deviceOf(r), 1, 3); err != nil {
		return err
	}
	if err = tr.awaitTransactions(ctx, r, 2); err != nil {
		return err
	}
	if x := r.Transactions(); x[0].ID != x[1].ID {
		return fmt.Errorf("transaction %s, whose answer got lost, came again as %s", x[0].ID, x[1].ID)
	}
	return tr.wantAt(ctx, r, 3)
}

// failures are those after which a transaction has to be sent again.
var failures = []func() remote.Reply{
	unavailable,
	func() remote.Reply { return remote.RefuseByProxy(http.StatusBadGateway) },
	func() remote.Reply { return remote.RefuseByProxy(http.StatusAccepted) },
	func() remote.Reply { return remote.RefuseByProxy(http.StatusFound) },
	func() remote.Reply { return remote.Refuse(http.StatusTooManyRequests, string(spec.ErrorLimitExceeded)) },
	func() remote.Reply { return remote.Reply{Drop: true} },
}

func failuresAreTold(ctx context.Context, tr *trial, remotes []*remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	for i, r := range remotes {
		r.Script(failures[i]())
		if err = alice.sendNumbered(ctx, deviceOf(r), 0, 1); err != nil {
			return err
		}
	}
	return together(len(remotes), func(i int) error { return tr.wantAt(ctx, remotes[i], 1) })
}

func refusalsAreTold(ctx context.Context, tr *trial, r *remote.Server) error {
	poisons := map[string]int{"org.example.bad": http.StatusBadRequest, "org.example.large": http.StatusRequestEntityTooLarge}
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	release := make(chan struct{})
	r.Script(remote.AcceptLate(release)) // so that the others share a transaction
	r.Behave(func(x *remote.Transaction) remote.Reply {
		for _, e := range x.EDUs {
			if e.ToDevice != nil && poisons[e.ToDevice.Type] != 0 {
				return remote.Refuse(poisons[e.ToDevice.Type], "M_UNKNOWN")
			}
		}
		return remote.Accept()
	})
	bob := deviceOf(r)
	if err = alice.sendNumbered(ctx, bob, 0, 1); err != nil {
		return err
	}
	if err = tr.awaitTransactions(ctx, r, 1); err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, bob, 1, 3); err != nil {
		return err
	}
	for poison := range poisons {
		if err = alice.must(ctx, http.MethodPut, putPath(poison, tr.name("txn")), object{"messages": to(numbered(100), bob)}, nil); err != nil {
			return err
		}
	}
	if err = alice.sendNumbered(ctx, bob, 3, 5); err != nil {
		return err
	}
	close(release)
	if err = tr.wantAt(ctx, r, 5); err != nil {
		return err
	}
	return tr.await(ctx, "what the destination refuses stands aside", func() (bool, any, error) {
		refused, err := tr.realStore().Refused(ctx, r.Name, time.Now().Add(time.Hour), 10)
		return len(refused) == len(poisons), len(refused), err
	})
}

func backoffIsTold(ctx context.Context, tr *trial, remotes []*remote.Server) error {
	failing, healthy := remotes[0], remotes[1]
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	failing.Behave(always(unavailable))
	if err = alice.send(ctx, to(numbered(0), deviceOf(failing), deviceOf(healthy))); err != nil {
		return err
	}
	if err = tr.awaitLeftAlone(ctx, failing); err != nil {
		return err
	}
	if err = tr.wantAt(ctx, healthy, 1); err != nil {
		return err
	}
	failing.Behave(always(remote.Accept))
	if err = tr.wantAt(ctx, failing, 1); err != nil {
		return err
	}
	// The pause before is over when the transaction begins, and the homeserver knows how it ended once SendTransaction has returned.
	const untilReturned = 1500 * time.Millisecond
	return together(len(remotes), func(i int) error {
		var since time.Time
		return tr.await(ctx, "Backoff tells that a destination that answers is not left alone, and goes on to", func() (bool, any, error) {
			pause := tr.leavesAlone(remotes[i])
			if pause > 0 || since.IsZero() {
				since = time.Now()
			}
			return time.Since(since) > untilReturned, pause, nil
		})
	})
}

func revivedDestinationsAreSentTo(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	defer fail[reachCall](tr.seam, errHeldBack)() // so that the module does not revive it
	r.Behave(always(unavailable))
	if err = alice.sendNumbered(ctx, deviceOf(r), 0, 1); err != nil {
		return err
	}
	pause, err := tr.awaitLongPause(ctx, r)
	if err != nil {
		return err
	}
	r.Behave(always(remote.Accept))
	revived, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	tr.homeserver().Revive(r.Name)
	if err = tr.homeserver().Ring(ctx, r.Name); err != nil {
		return fmt.Errorf("Ring: %w", err)
	}
	if err = tr.wantAt(revived, r, 1); err != nil {
		return fmt.Errorf("after Revive and Ring: %w", err)
	}
	return nil
}

// ownRequests are requests of another server, by what is said of them. What they are answered is nobody's affair.
var ownRequests = []struct {
	name string
	send func(ctx context.Context, tr *trial, r *remote.Server) error
}{
	{"a transaction", func(ctx context.Context, tr *trial, r *remote.Server) error {
		return tr.mustTransmit(ctx, r, tr.name("txn"))
	}},
	{"a transaction whose signature is not good", func(ctx context.Context, tr *trial, r *remote.Server) error {
		_, err := tr.transmitAs(ctx, r, remote.OwnTransaction{ID: tr.name("txn"), WrongKey: true})
		return err
	}},
	{"a request that is no transaction", func(ctx context.Context, tr *trial, r *remote.Server) error {
		name := tr.setup.ServerName
		_, _ = r.Client.GetUserDevices(ctx, spec.ServerName(r.Name), spec.ServerName(name), "@nobody:"+name)
		return nil
	}},
}

func remotesAreNoticed(ctx context.Context, tr *trial, remotes []*remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	var devices []*client
	for _, r := range remotes {
		r.Behave(always(unavailable))
		devices = append(devices, deviceOf(r))
	}
	if err = alice.send(ctx, to(numbered(0), devices...)); err != nil {
		return err
	}
	defer fail[reachCall](tr.seam, errHeldBack)() // which would have its failures end
	return together(len(remotes), func(i int) error {
		r, request := remotes[i], ownRequests[i]
		pause, err := tr.awaitLongPause(ctx, r)
		if err != nil {
			return err
		}
		// By itself the module waits until the homeserver has tried again.
		noticed, cancel := context.WithTimeout(ctx, pause-time.Second)
		defer cancel()
		before := len(calls[reachCall](tr.seam))
		if err = request.send(noticed, tr, r); err != nil {
			return err
		}
		return tr.await(noticed, "the module asks whether a server is back that has sent "+request.name, func() (bool, any, error) {
			asked := calls[reachCall](tr.seam)[before:]
			return slices.Contains(asked, reachCall{r.Name}), asked, nil
		})
	})
}

func edusArriveOnceAndInOrder(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	release := make(chan struct{})
	r.Script(remote.AcceptLate(release), remote.ProcessAndDrop(), unavailable())
	bob := deviceOf(r)
	const many = 150 // more than a transaction may have
	if err = alice.sendNumbered(ctx, bob, 0, many); err != nil {
		return err
	}
	close(release)
	const outage = 3 // transactions
	if err = tr.awaitTransactions(ctx, r, outage); err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, bob, many, many+5); err != nil {
		return err
	}
	return tr.wantAt(ctx, r, many+5)
}

func edusOutliveARestart(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, err := tr.register(ctx, "alice", "FIRST")
	if err != nil {
		return err
	}
	if err = r.Close(); err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, deviceOf(r), 0, 3); err != nil {
		return err
	}
	if err = tr.restart(ctx); err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, deviceOf(r), 3, 6); err != nil {
		return err
	}
	if err = tr.crash(ctx); err != nil {
		return err
	}
	if err = r.Open(ctx); err != nil {
		return err
	}
	return tr.wantAt(ctx, r, 6)
}

func destinationsDoNotWaitForEachOther(ctx context.Context, tr *trial, remotes []*remote.Server) error {
	slow, dead, healthy := remotes[0], remotes[1], remotes[2]
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	if err = dead.Close(); err != nil {
		return err
	}
	release := make(chan struct{})
	slow.Script(remote.AcceptLate(release))
	if err = alice.sendNumbered(ctx, deviceOf(slow), 0, 1); err != nil {
		return err
	}
	if err = tr.awaitTransactions(ctx, slow, 1); err != nil {
		return err
	}
	const many = 5
	for n := range many {
		m := to(numbered(n), deviceOf(healthy), deviceOf(dead), bob)
		if err = alice.send(ctx, m.add(slow.User("bob"), "FIRST", numbered(n+1))); err != nil {
			return err
		}
	}
	if err = tr.wantAt(ctx, healthy, many); err != nil {
		return err
	}
	events, _, err := bob.receive(ctx, "", many)
	if err == nil {
		err = wantNumbers("a device of the homeserver's own", events, 0, many)
	}
	close(release)
	if err != nil {
		return err
	}
	if err = tr.wantAt(ctx, slow, many+1); err != nil {
		return err
	}
	return dead.Open(ctx)
}

func nobodyIsRungForNothing(ctx context.Context, tr *trial, r *remote.Server) error {
	alice, bob, err := tr.pair(ctx)
	if err != nil {
		return err
	}
	if err = alice.sendNumbered(ctx, deviceOf(r), 0, 3); err != nil {
		return err
	}
	if err = tr.wantAt(ctx, r, 3); err != nil {
		return err
	}
	rings := calls[ringCall](tr.seam)
	if len(rings) == 0 || slices.ContainsFunc(rings, func(c ringCall) bool { return c.Destination != r.Name }) {
		return fmt.Errorf("with messages for %s, the module rang %v", r.Name, rings)
	}
	err = tr.await(ctx, "what arrived is deleted", func() (bool, any, error) {
		waiting, err := tr.realStore().Waiting(ctx, r.Name, 0, math.MaxInt64, 1, math.MaxInt32)
		return len(waiting) == 0, len(waiting), err
	})
	if err != nil {
		return err
	}
	tr.forget()
	if err = alice.sendNumbered(ctx, bob, 0, 3); err != nil {
		return err
	}
	if err = tr.mustTransmit(ctx, r, tr.name("txn"), r.ToDevice(tr.name("id"), to(numbered(3), bob))); err != nil {
		return err
	}
	if err = tr.wantAll(ctx, bob, 4); err != nil {
		return err
	}
	if rings = calls[ringCall](tr.seam); len(rings) > 0 {
		return fmt.Errorf("with nothing waiting, the module rang %v", rings)
	}
	return nil
}
