package outbox_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
)

func TestSendTakesWhatWaitsAlong(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 3)...)
		f.add(edu("elsewhere.example.org", "x"))
		f.must(f.sendTransaction(f.transaction(there, []string{`{"pdu":1}`}, typing(1))))
		f.wantArrived(ids)
		f.wantLine(there, nil)
		f.wantLine("elsewhere.example.org", []string{"x"})
		if len(f.remote.took()) != 1 {
			t.Fatalf("it took %d transactions", len(f.remote.took()))
		}
		got := f.remote.took()[0]
		if len(got.PDUs) != 1 || len(got.EDUs) != 4 || got.EDUs[3].Type != spec.MTyping {
			t.Errorf("the transaction is %+v", got)
		}
		if got.Origin != here || got.Destination != there || got.OriginServerTS != spec.AsTimestamp(f.clock.Now()) {
			t.Errorf("the transaction is of %s to %s at %d", got.Origin, got.Destination, got.OriginServerTS)
		}
		if f.outcomes[outbox.Sent] != 3 {
			t.Errorf("observed: %v", f.outcomes)
		}
	})
}

func TestSendKeepsTheOrderOfALongLine(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 2*outbox.MaxEDUs+30)...)
		f.must(f.send(typings(7)...))
		f.wantArrived(ids)
		f.wantLine(there, nil)
		var counts []int
		for _, took := range f.remote.took() {
			counts = append(counts, len(took.EDUs))
		}
		if !slices.Equal(counts, []int{100, 100, 37}) {
			t.Errorf("the transactions have %v EDUs", counts)
		}
		f.wantForgotten()
	})
}

func TestSendWithNothingToSend(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.must(f.send())
	empty := f.transaction(there, nil)
	empty.EDUs = nil
	f.must(f.sendTransaction(empty))
	if len(f.remote.tried()) != 0 {
		t.Errorf("%d transactions were delivered", len(f.remote.tried()))
	}
	f.wantForgotten()
}

// large is an EDU of about so many bytes.
func large(id string, size int) storage.EDU {
	e := edu(there, id)
	e.Content = []byte(strings.Replace(string(e.Content), "{}", `{"x":"`+strings.Repeat("x", size)+`"}`, 1))
	return e
}

func TestSendBoundsTheBytes(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		var all []storage.EDU
		for i := range 40 {
			all = append(all, large(fmt.Sprintf("m%02d", i), 60<<10))
		}
		all[20] = large("m20", 2*outbox.MaxTransactionBytes)
		ids := f.add(all...)
		pdu := `{"x":"` + strings.Repeat("x", 60<<10) + `"}`
		f.must(f.sendTransaction(f.transaction(there, slices.Repeat([]string{pdu}, 10), typings(3)...)))
		f.wantArrived(ids) // the remote checks the size of each
		if n := len(f.remote.took()); n > 5 {
			t.Errorf("it took %d transactions, want 5 at the most", n)
		}
		if len(f.remote.took()[0].PDUs) != 10 {
			t.Error("the host's PDUs were not in the first transaction")
		}
	})
}

// The host's part waits for one transaction of ours at the most.
func TestSendTheHostsPartThatDoesNotFit(t *testing.T) {
	pdu := `{"x":"` + strings.Repeat("x", 60<<10) + `"}`
	for name, part := range map[string]func(f *fixture) gomatrixserverlib.Transaction{
		"100 EDUs": func(f *fixture) gomatrixserverlib.Transaction { return f.transaction(there, nil, typings(100)...) },
		"many PDUs": func(f *fixture) gomatrixserverlib.Transaction {
			return f.transaction(there, slices.Repeat([]string{pdu}, 50))
		},
		"another origin": func(f *fixture) gomatrixserverlib.Transaction {
			part := f.transaction(there, []string{`{}`}, typing(1))
			part.Origin = "other.example.org"
			return part
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				ids := f.add(edus(there, "m", 3*outbox.MaxEDUs)...)
				whole := part(f)
				f.must(f.sendTransaction(whole))
				f.wantArrived(ids)
				took := f.remote.took()
				if len(idsOf(took[0])) < outbox.MaxEDUs-1 || len(idsOf(took[1])) != 0 {
					t.Errorf("the first transactions have %d and %d messages", len(idsOf(took[0])), len(idsOf(took[1])))
				}
				got := took[1]
				if len(got.PDUs) != len(whole.PDUs) || len(got.EDUs) != len(whole.EDUs)-1 || got.Origin != whole.Origin {
					t.Errorf("the host's part is of %s and has %d PDUs and %d EDUs", got.Origin, len(got.PDUs), len(got.EDUs))
				}
			})
		})
	}
}

// A first message that leaves the host's part no room does not hold it up either.
func TestSendBesideALargeMessage(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(large("large", outbox.MaxTransactionBytes-200), edu(there, "small"))
		f.must(f.send(typings(10)...))
		f.wantArrived(ids)
		if took := f.remote.took(); len(took) != 2 || len(took[1].EDUs) < 10 {
			t.Errorf("transaction 2 of %d has %d EDUs", len(took), len(took[1].EDUs))
		}
	})
}

func TestSendFromSeveralOrigins(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		var all []storage.EDU
		for i, origin := range []string{"b.org", "b.org", here, "c.org", "c.org", here} {
			e := edu(there, fmt.Sprint("m", i))
			e.Origin = origin
			all = append(all, e)
		}
		ids := f.add(all...)
		f.must(f.send(typing(1)))
		f.wantArrived(ids)
		var got []string
		for _, took := range f.remote.took() {
			got = append(got, fmt.Sprint(took.Origin, len(took.EDUs)))
		}
		want := []string{"b.org2", here + "2", "c.org2", here + "1"}
		if !slices.Equal(got, want) {
			t.Errorf("the transactions are %v, want %v", got, want)
		}
	})
}

// The host sends the same slices again after a failure.
func TestSendLeavesTheHostsTransactionAsItIs(t *testing.T) {
	f := onSQLite(t)
	f.start()
	f.add(edus(there, "m", 3)...)
	build := func() gomatrixserverlib.Transaction {
		part := f.transaction(there, []string{`{}`}, typings(3)...)
		part.EDUs = append(make([]gomatrixserverlib.EDU, 0, 50), part.EDUs...) // with room to write into
		part.EDUs = append(part.EDUs, doorbell(), typing(4))
		return part
	}
	part := build()
	f.must(f.sendTransaction(part))
	if want := build(); !reflect.DeepEqual(part.EDUs, want.EDUs) || !reflect.DeepEqual(part.PDUs, want.PDUs) {
		t.Error("the host's transaction was changed")
	}
	if beyond := part.EDUs[:cap(part.EDUs)][len(part.EDUs)]; beyond.Type != "" {
		t.Error("something was written behind the host's EDUs")
	}
	if took := f.remote.took(); len(took) != 1 || len(took[0].EDUs) != 7 {
		t.Errorf("took %+v", took)
	}
}

func TestIsDoorbell(t *testing.T) {
	if !outbox.IsDoorbell(doorbell()) {
		t.Error("a doorbell is not recognised")
	}
	for name, content := range map[string]string{
		"a message that names it": `{"type":"org.example","messages":{"@a:b":{"C":{"type":"` + outbox.DoorbellType + `"}}}}`,
		"another type":            `{"type":"` + outbox.DoorbellType + `s"}`,
		"no object":               `"` + outbox.DoorbellType + `"`,
		"nothing":                 ``,
	} {
		if outbox.IsDoorbell(gomatrixserverlib.EDU{Type: spec.MDirectToDevice, Content: []byte(content)}) {
			t.Errorf("%s passes for a doorbell", name)
		}
	}
	other := doorbell()
	other.Type = spec.MTyping
	if outbox.IsDoorbell(other) {
		t.Error("an EDU of another type passes for a doorbell")
	}
}

// A call of Send ends after a while, so that the host's next events need not wait.
func TestSendStopsAfterTheDrainTime(t *testing.T) {
	f := onSQLite(t)
	ids := f.add(edus(there, "m", 3*outbox.MaxEDUs)...)
	f.start()
	f.settle() // the ring for what waited
	f.remote.slow(f.clock, outbox.DrainFor/2)
	f.must(f.send(typing(1)))
	f.wantArrived(ids[:2*outbox.MaxEDUs-1])
	f.wantLine(there, ids[2*outbox.MaxEDUs-1:])
	f.settle()
	if f.host.rung(there) != 2 {
		t.Errorf("rung %d times, want a second one for what is left", f.host.rung(there))
	}
	f.remote.on(nil)
	f.must(f.send())
	f.wantArrived(ids)
	f.wantForgotten()
}

// Two transactions to a destination at once would break the order, and be answered with a 429.
func TestSendsWaitForEachOther(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 3)...)
		release := make(chan struct{})
		first := f.blocked(release)
		second := make(chan error, 1)
		go func() { second <- f.Send(f.ctx, f.transaction(there, []string{`{}`}), f.remote.deliver) }()
		f.waitFor("there are two calls", func() bool { return f.Sending(there) == 2 })
		f.settlePlaces()
		if n := len(f.remote.tried()); n != 1 {
			t.Errorf("%d transactions at once", n)
		}
		f.remote.on(nil)
		close(release)
		if err := errors.Join(<-first, <-second); err != nil {
			t.Error(err)
		}
		f.wantArrived(ids)
		if n := len(f.remote.took()); n != 2 {
			t.Errorf("%d transactions, want 2", n)
		}
		f.wantForgotten()
	})
}
