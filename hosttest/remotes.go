package hosttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// errHeldBack is what a check answers to a call of the module's that it does not let through.
var errHeldBack = errors.New("held back by the check")

// withRemote is the check of a promise with another homeserver, which ends with it.
func withRemote(check func(ctx context.Context, tr *trial, r *remote.Server) error) func(context.Context, *trial) error {
	return withRemotes(1, func(ctx context.Context, tr *trial, remotes []*remote.Server) error {
		return check(ctx, tr, remotes[0])
	})
}

// withRemotes is the same with several.
func withRemotes(n int, check func(ctx context.Context, tr *trial, remotes []*remote.Server) error) func(context.Context, *trial) error {
	return func(ctx context.Context, tr *trial) (err error) {
		remotes := make([]*remote.Server, 0, n)
		defer func() {
			for _, r := range remotes {
				err = errors.Join(err, r.Close())
			}
		}()
		for range n {
			r, err := remote.New(ctx)
			if err != nil {
				return fmt.Errorf("starting another homeserver: %w", err)
			}
			remotes = append(remotes, r)
			if err = r.Learn(ctx, tr.setup.ServerName); err != nil {
				return err
			}
		}
		if err = check(ctx, tr, remotes); err != nil {
			for _, r := range remotes {
				err = fmt.Errorf("%w; %s was sent:\n%s", err, r.Name, strings.Join(r.History(), "\n"))
			}
		}
		return err
	}
}

// deviceOf returns a device of a user of another server, to send to.
func deviceOf(r *remote.Server) *client {
	return &client{Device: types.Device{UserID: r.User("bob"), DeviceID: "FIRST"}}
}

// awaitTransactions waits until the other server was sent so many transactions, whatever it answered.
func (tr *trial) awaitTransactions(ctx context.Context, r *remote.Server, n int) error {
	return tr.await(ctx, fmt.Sprintf("%s is sent %d transactions", r.Name, n), func() (bool, any, error) {
		got := len(r.Transactions())
		return got >= n, got, nil
	})
}

// awaitAt waits until so many messages arrived at the other server, and returns all that did.
func (tr *trial) awaitAt(ctx context.Context, r *remote.Server, n int) (arrived []event, err error) {
	err = tr.await(ctx, fmt.Sprintf("%d messages arrive at %s", n, r.Name), func() (bool, any, error) {
		arrived = arrived[:0]
		for _, m := range r.Messages() {
			arrived = append(arrived, event{Sender: m.Sender, Type: m.Type, Content: m.Content})
		}
		return len(arrived) >= n, numbersOf(arrived), nil
	})
	return arrived, err
}

// wantAt waits until the messages before end arrived at the other server, and returns an error unless those are all that did, in order, and nothing that
// it was sent breaks the rules of federation.
func (tr *trial) wantAt(ctx context.Context, r *remote.Server, end int) error {
	arrived, err := tr.awaitAt(ctx, r, end)
	if err != nil {
		return errors.Join(err, r.Err())
	}
	return errors.Join(wantNumbers("the other server", arrived, 0, end), r.Err())
}

// transmit has the other server send EDUs in a transaction. The error is that there is no answer.
func (tr *trial) transmit(ctx context.Context, r *remote.Server, txnID string, edus ...any) (answer, error) {
	return tr.transmitAs(ctx, r, remote.OwnTransaction{ID: txnID, EDUs: edus})
}

func (tr *trial) transmitAs(ctx context.Context, r *remote.Server, x remote.OwnTransaction) (answer, error) {
	a, err := r.Send(ctx, tr.setup.ServerName, x)
	if err != nil {
		return answer{}, fmt.Errorf("transaction %s of %s: %w", x.ID, r.Name, err)
	}
	return answer{Status: a.Status, Body: bytes.TrimSpace(a.Body)}, nil
}

// mustTransmit has the other server send EDUs in a transaction that has to be accepted.
func (tr *trial) mustTransmit(ctx context.Context, r *remote.Server, txnID string, edus ...any) error {
	a, err := tr.transmit(ctx, r, txnID, edus...)
	if err != nil {
		return err
	}
	return a.want(http.StatusOK, "a transaction of another server")
}

// retransmit has the other server send EDUs that were not accepted until they are, as a server does.
func (tr *trial) retransmit(ctx context.Context, r *remote.Server, txnID string, edus ...any) error {
	return tr.await(ctx, "the same transaction is accepted later", func() (bool, any, error) {
		a, err := tr.transmit(ctx, r, txnID, edus...)
		return a.Status == http.StatusOK, a, err
	})
}

// wantAll returns an error unless the device gets the messages before end, each once and in order. It tells by one more that the device sends
// itself: nothing that was stored before can come after it.
func (tr *trial) wantAll(ctx context.Context, device *client, end int) error {
	if err := device.send(ctx, to(numbered(end), device)); err != nil {
		return err
	}
	var got []event
	since := ""
	err := tr.await(ctx, "the last message arrives", func() (bool, any, error) {
		res, err := device.sync(ctx, since)
		if err != nil {
			return false, nil, err
		}
		got, since = append(got, res.events()...), res.NextBatch
		return len(got) > 0 && got[len(got)-1].number() == end, numbersOf(got), nil
	})
	if err != nil {
		return err
	}
	return wantNumbers("the device", got, 0, end+1)
}
