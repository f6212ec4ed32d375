package outbox_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// Nothing is deleted before the destination's 200, and the host is told what it answered.
func TestSendFails(t *testing.T) {
	for name, failure := range map[string]error{
		"network": errNetwork, "500": answer(500), "502": answer(502), "429": answer(429), "408": answer(408), "425": answer(425),
		"302": answer(302),
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				ids := f.add(edus(there, "m", 3)...)
				f.remote.fails(failure)
				for range 3 {
					if err := f.send(typing(1)); !errors.Is(err, failure) && err.Error() != failure.Error() {
						t.Errorf("the host is told %v, want %v", err, failure)
					}
					f.clock.advance(time.Second)
				}
				f.wantLine(there, ids)
				tried := f.remote.tried()
				if len(tried) != 3 || len(f.store.refused()) != 0 {
					t.Errorf("%d transactions, %d refusals", len(tried), len(f.store.refused()))
				}
				if tried[1].TransactionID != tried[0].TransactionID || tried[1].OriginServerTS != tried[0].OriginServerTS {
					t.Error("a transaction that did not change was sent under another ID")
				}
				f.remote.on(nil)
				f.must(f.send(typing(1)))
				f.wantArrived(ids)
				f.wantLine(there, nil)
				f.wantForgotten()
			})
		})
	}
}

// The host looks at the type of an error.
func TestSendReturnsTheAnswerAsItIs(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edu(there, "m"))
	for _, code := range []int{400, 401, 403, 404, 500} {
		f.remote.fails(answer(code))
		err := f.send(typing(1))
		if got, ok := err.(gomatrix.HTTPError); !ok || got.Code != code { //nolint:errorlint // as the host does it
			t.Errorf("a %d is returned as %#v", code, err)
		}
	}
}

// What the destination has may be told by its ID alone: after a failure the same transaction comes again,
// and what was added since comes after it.
func TestSendRepeatsWhatMayHaveArrived(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		first := f.add(edus(there, "a", 5)...)
		f.remote.keeps = true
		f.remote.fails(errNetwork)
		if f.send(typing(1)) == nil {
			t.Error("Send did not fail")
		}
		second := f.add(edus(there, "b", 5)...)
		f.remote.on(nil)
		f.must(f.send(typing(1)))
		tried := f.remote.tried()
		if tried[0].TransactionID != tried[1].TransactionID {
			t.Error("the transaction came again under another ID")
		}
		f.wantArrived(append(first, second...))
		if len(tried) != 3 || tried[2].TransactionID == tried[1].TransactionID {
			t.Error("what was added came in the same transaction")
		}
	})
}

// The host keeps its transaction ID after a failure and puts more under it. The remote checks that no ID has
// two contents.
func TestSendNamesEachContentAnew(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.add(edus(there, "m", 3)...)
		f.remote.fails(errNetwork)
		for i := range 5 {
			if f.send(typings(i)...) == nil {
				t.Error("Send did not fail")
			}
			if f.sendTransaction(f.transaction(there, []string{`{}`}, typings(i)...)) == nil {
				t.Error("Send did not fail")
			}
			f.restart()
		}
		ids := make(map[gomatrixserverlib.TransactionID]bool)
		for _, tried := range f.remote.tried() {
			ids[tried.TransactionID] = true
		}
		if len(ids) != 10 {
			t.Errorf("%d transactions have %d IDs", len(f.remote.tried()), len(ids))
		}
	})
}

// The host's part has arrived: the host would send it again if it were told of a failure after it.
func TestSendFailsAfterTheHostsPart(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 150)...)
		f.remote.on(failAfterOne())
		f.must(f.send(typing(1)))
		f.wantArrived(ids[:99])
		f.wantLine(there, ids[99:])
		f.settle()
		if f.host.rung(there) == 0 {
			t.Error("nobody rings for what is left")
		}
		if f.send() == nil {
			t.Error("the failure is not told after all")
		}
		f.remote.on(nil)
		f.must(f.send())
		f.wantArrived(ids)
	})
}

// failAfterOne accepts one transaction.
func failAfterOne() func(context.Context, gomatrixserverlib.Transaction) error {
	accepted := false
	return func(context.Context, gomatrixserverlib.Transaction) error {
		if accepted {
			return errNetwork
		}
		accepted = true
		return nil
	}
}

func TestSendFailsHalfWayThroughALine(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 150)...)
		f.remote.on(failAfterOne())
		if f.send() == nil {
			t.Error("the host's doorbell was answered although the destination failed")
		}
		f.wantLine(there, ids[outbox.MaxEDUs:])
		f.remote.on(nil)
		f.must(f.send())
		f.wantArrived(ids)
	})
}

// A transaction without PDUs is soon done, or never; one with PDUs may take as long as the host allows.
func TestSendBoundsTheTimeOfATransaction(t *testing.T) {
	f := onSQLite(t)
	f.start()
	var limited []bool
	f.remote.on(func(ctx context.Context, t gomatrixserverlib.Transaction) error {
		_, limit := ctx.Deadline()
		limited = append(limited, limit)
		return nil
	})
	f.add(edu(there, "m"))
	f.must(f.Send(context.Background(), f.transaction(there, nil, typing(1)), f.remote.deliver))
	f.add(edu(there, "n"))
	f.must(f.Send(context.Background(), f.transaction(there, []string{`{}`}), f.remote.deliver))
	if !slices.Equal(limited, []bool{true, false}) {
		t.Errorf("limited: %v", limited)
	}
}

func TestSendGivesUpWithTheHost(t *testing.T) {
	f := onSQLite(t)
	f.start()
	ids := f.add(edu(there, "m"))
	ctx, cancel := context.WithCancel(f.ctx)
	f.remote.on(func(ctx context.Context, _ gomatrixserverlib.Transaction) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if err := f.Send(ctx, f.transaction(there, nil), f.remote.deliver); !errors.Is(err, context.Canceled) {
		t.Errorf("Send returned %v", err)
	}
	f.wantLine(there, ids)
	if f.remote.tried()[0].Destination != there {
		t.Error("nothing was tried")
	}
}
