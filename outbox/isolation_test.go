package outbox_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

func without(ids []string, gone ...string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(gone, id) })
}

// Wherever the refused EDU stands, the others arrive in order and at once, and so does the host's part.
func TestOneRefusedAmongMany(t *testing.T) {
	for _, code := range []int{400, 403, 404, 413, 418} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			each(t, func(f *fixture) {
				f.start()
				for _, refused := range []int{0, 1, 49, 50, 98, 99} {
					f.remote = newRemote(t)
					ids := f.add(edus(there, "m", 100)...)
					f.remote.refuses(code, ids[refused])
					f.must(f.send(typing(1)))
					f.wantArrived(without(ids, ids[refused]))
					f.wantLine(there, nil)
					aside := f.aside(there)
					if len(aside) != 1 || aside[0].MessageID != ids[refused] || aside[0].Attempts != 1 ||
						!aside[0].RetryAt.Equal(f.clock.Now().Add(outbox.Pauses[0])) {
						t.Fatalf("aside: %+v", aside)
					}
					if !hostsPartArrived(f) {
						t.Error("the host's part did not arrive")
					}
					if n := len(f.remote.tried()); n > 25 {
						t.Errorf("it took %d transactions", n)
					}
					f.must(f.real.Accepted(f.ctx, there, aside[0].Position))
				}
			})
		})
	}
}

func TestSeveralRefusedAmongMany(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 230)...)
		refused := []string{"m000", "m001", "m002", "m050", "m099", "m100", "m150", "m229"}
		f.remote.refuses(400, refused...)
		f.must(f.send())
		f.wantArrived(without(ids, refused...))
		f.wantLine(there, nil)
		var got []string
		for _, r := range f.store.refused() {
			got = append(got, r.MessageID)
		}
		if !slices.Equal(got, refused) || f.outcomes[outbox.Refused] != len(refused) || f.outcomes[outbox.Sent] != 222 {
			t.Errorf("refused: %v, observed: %v", got, f.outcomes)
		}
		if f.Destinations() != 1 {
			t.Error("the refused EDUs are not remembered")
		}
	})
}

// The only EDU that waits is refused: the destination is asked whether it takes any.
func TestRefusedAlone(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.add(edu(there, "m"))
		f.remote.refuses(400, "m")
		f.must(f.send())
		f.wantLine(there, nil)
		if aside := f.aside(there); len(aside) != 1 || !strings.Contains(aside[0].Answer, "400") || !strings.Contains(aside[0].Answer, "M_TEST") {
			t.Errorf("aside: %+v", aside)
		}
		last := f.remote.took()
		if len(last) != 1 || len(last[0].EDUs) != 1 {
			t.Fatalf("the destination accepted %+v", last)
		}
		question := last[0].EDUs[0]
		wantFixpoint(t, question.Content)
		if !strings.Contains(string(question.Content), `"messages":{}`) || question.Origin != here {
			t.Errorf("the question was %s", question.Content)
		}
	})
}

// A destination that takes nothing, say for a signing key that it does not know, is no reason to give a message up.
func TestRefusesEverything(t *testing.T) {
	for _, code := range []int{400, 401, 403, 404} {
		for name, n := range map[string]int{"one": 1, "many": 100} {
			t.Run(name, func(t *testing.T) {
				each(t, func(f *fixture) {
					f.start()
					ids := f.add(edus(there, "m", n)...)
					f.remote.fails(answer(code))
					for range 10 {
						if err := f.send(typing(1)); err == nil || err.Error() != answer(code).Error() {
							t.Errorf("the host is told %v", err)
						}
						if err := f.send(); err == nil || err.Error() != answer(code).Error() {
							t.Errorf("the host is told %v", err)
						}
						if n := len(f.remote.tried()); n > 40 {
							t.Fatalf("%d transactions to a destination that takes none", n)
						}
						f.remote.attempts = nil
					}
					f.wantLine(there, ids)
					if len(f.store.refused()) != 0 {
						t.Errorf("refused: %+v", f.store.refused())
					}
					f.remote.on(nil)
					f.must(f.send(typing(1)))
					f.wantArrived(ids)
				})
			})
		}
	}
}

// Something in between refused everything for a while: no message is to blame.
func TestRefusesEverythingAtFirst(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		var want []string
		for n := range 12 {
			ids := f.add(edus(there, fmt.Sprintf("%02d-", n), 20)...)
			want = append(want, ids...)
			left := n
			f.remote.on(func(context.Context, gomatrixserverlib.Transaction) error {
				left--
				if left >= 0 {
					return answer(403)
				}
				return nil
			})
			if f.send(typing(1)) != nil {
				f.must(f.send(typing(1)))
			}
			f.wantArrived(want)
			if len(f.store.refused()) > 0 {
				t.Fatalf("refused after %d refusals: %+v", n, f.store.refused())
			}
		}
		f.wantForgotten()
	})
}

// A refused message that is accepted when it is sent once more does not stand aside.
func TestRefusesOnce(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 10)...)
		refusals := 0
		f.remote.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
			if slices.Contains(idsOf(t), "m003") && refusals < 5 { // all 10, 5, 3, 2, and alone
				refusals++
				return answer(400)
			}
			return nil
		})
		f.must(f.send())
		f.wantArrived(ids)
		f.wantLine(there, nil)
		if len(f.store.refused()) > 0 || f.outcomes[outbox.Sent] != 10 {
			t.Errorf("refused: %+v, observed: %v", f.store.refused(), f.outcomes)
		}
		f.wantForgotten()
	})
}

// The host's own events are refused, ours go all the same.
func TestTheHostsPartIsRefused(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 50)...)
		f.remote.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
			if len(t.PDUs) > 0 {
				return answer(400)
			}
			return nil
		})
		if err := f.sendTransaction(f.transaction(there, []string{`{}`}, typing(1))); err == nil {
			t.Error("the host is not told")
		}
		f.wantArrived(ids)
		f.wantLine(there, nil)
		if len(f.store.refused()) != 0 {
			t.Errorf("refused: %+v", f.store.refused())
		}
	})
}

// Both are refused, for different reasons.
func TestTheHostsPartAndOneOfOursAreRefused(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 50)...)
		f.remote.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
			if len(t.PDUs) > 0 || slices.Contains(idsOf(t), "m020") {
				return answer(400)
			}
			return nil
		})
		if err := f.sendTransaction(f.transaction(there, []string{`{}`}, typing(1))); err == nil {
			t.Error("the host is not told")
		}
		f.wantArrived(without(ids, "m020"))
		f.wantLine(there, nil)
	})
}

// The network fails while the refused EDU is looked for.
func TestIsolationIsInterrupted(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 100)...)
		for left := 0; len(f.line(there)) > 0; left++ {
			n := left % 7
			f.remote.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
				n--
				if n < 0 {
					return errNetwork
				}
				if slices.Contains(idsOf(t), "m042") {
					return answer(400)
				}
				return nil
			})
			_ = f.send(typing(1))
			if left > 100 {
				t.Fatal("there is no end to it")
			}
		}
		f.wantArrived(without(ids, "m042"))
		if aside := f.aside(there); len(aside) != 1 || aside[0].MessageID != "m042" {
			t.Errorf("aside: %+v", aside)
		}
	})
}

// A destination that meets a fault of its own at one EDU, always, is as stuck as one that refuses it.
func TestFailsAtOneEDU(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 100)...)
		f.remote.refuses(500, "m042")
		for i := range outbox.FailuresAlike {
			if f.send(typings(i%3)...) == nil {
				t.Fatal("the host is not told")
			}
		}
		f.wantLine(there, ids)
		f.must(f.send(typing(1)))
		f.wantArrived(without(ids, "m042"))
		if aside := f.aside(there); len(aside) != 1 || aside[0].MessageID != "m042" {
			t.Errorf("aside: %+v", aside)
		}
		if !hostsPartArrived(f) {
			t.Error("the host's part did not arrive")
		}
	})
}

// A destination that is broken altogether gives nothing up, however long it is.
func TestFailsAtEverything(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		ids := f.add(edus(there, "m", 100)...)
		f.remote.fails(answer(500))
		for i := range 5 * outbox.FailuresAlike {
			if f.send(typings(i%2)...) == nil {
				t.Fatal("the host is not told")
			}
		}
		f.wantLine(there, ids)
		if n := len(f.remote.tried()); n > 10*5*outbox.FailuresAlike/2 {
			t.Errorf("%d transactions to a destination that is broken", n)
		}
		f.remote.on(nil)
		f.must(f.send())
		f.wantArrived(ids)
	})
}

// 502, 503 and 504 are the answers of proxies, which do not look at what they pass on.
func TestProxiesRefuseNothing(t *testing.T) {
	for _, code := range []int{408, 425, 429, 502, 503, 504} {
		f := onSQLite(t)
		f.start()
		ids := f.add(edus(there, "m", 3)...)
		f.remote.refuses(code, "m001")
		for range 3 * outbox.FailuresAlike {
			if f.send() == nil {
				t.Fatalf("%d: the host is not told", code)
			}
		}
		f.wantLine(there, ids)
	}
}

// What another version of the module or another library packed is not sent where it would be changed. It holds up nothing.
func TestWhatCannotBeSignedStandsAside(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		changed := edu(there, "changed")
		changed.Content = []byte(`{"b":"\n","a":1}`) // as no version packs it: any library would sort it
		f.add(edu(there, "before"), changed, edu(there, "after"))
		f.must(f.send(typing(1)))
		f.wantArrived([]string{"before", "after"})
		f.wantLine(there, nil)
		aside := f.aside(there)
		if len(aside) != 1 || aside[0].MessageID != "changed" || !strings.Contains(aside[0].Answer, "signs") || aside[0].Attempts != 1 {
			t.Errorf("aside: %+v", aside)
		}
		if !hostsPartArrived(f) {
			t.Error("the host's part did not arrive")
		}
	})
}
