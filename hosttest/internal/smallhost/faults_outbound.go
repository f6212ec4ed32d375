package smallhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

func outboundFaults() map[string][]Fault {
	return map[string][]Fault{
		"destinations-are-reached": {
			{What: "every server can be reached", breaks: func(_ *host, b *broken) {
				b.host.reach = func(context.Context, string) error { return nil }
			}},
			{What: "no server can be reached", breaks: func(_ *host, b *broken) {
				b.host.reach = func(context.Context, string) error { return errors.New("it can't be reached") }
			}},
		},
		"a-ring-makes-a-transaction": {{What: "nobody listens to the bell", breaks: func(_ *host, b *broken) {
			b.host.ring = func(context.Context, string) error { return nil }
		}}},
		"transactions-go-through-the-module": {{What: "transactions are sent past the module", breaks: func(_ *host, b *broken) {
			b.calls.sendTransaction = func(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error {
				return deliver(ctx, t)
			}
		}}},
		"transactions-are-sent-as-they-are": {
			delivering("all transactions have one ID", func(deliver outbox.Deliver) outbox.Deliver {
				return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
					t.TransactionID = "always"
					return deliver(ctx, t)
				}
			}, "transactions-go-through-the-module"),
			delivering("EDUs are sent in reverse", func(deliver outbox.Deliver) outbox.Deliver {
				return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
					t.EDUs = slices.Clone(t.EDUs)
					slices.Reverse(t.EDUs)
					return deliver(ctx, t)
				}
			}),
			delivering("EDUs are left out", func(deliver outbox.Deliver) outbox.Deliver {
				return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
					t.EDUs = t.EDUs[:1]
					return deliver(ctx, t)
				}
			}),
		},
		"failures-are-told": {
			delivering("a failure is taken for a 200", func(deliver outbox.Deliver) outbox.Deliver {
				return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
					_ = deliver(ctx, t)
					return nil
				}
			}),
			takingFor200("a 202 of a proxy", isNoJSON),
			takingFor200("a redirection", isRedirection),
		},
		"refusals-are-told": {delivering("only a 400 is told as what it is", func(deliver outbox.Deliver) outbox.Deliver {
			return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
				err := deliver(ctx, t)
				if answer := (gomatrix.HTTPError{}); errors.As(err, &answer) && answer.Code != http.StatusBadRequest {
					return errors.New("it failed")
				}
				return err
			}
		}), delivering("the status of an answer is lost", func(deliver outbox.Deliver) outbox.Deliver {
			return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
				err := deliver(ctx, t)
				if answer := (gomatrix.HTTPError{}); errors.As(err, &answer) {
					return fmt.Errorf("the answer was %d", answer.Code)
				}
				return err
			}
		})},
		"backoff-is-told": {
			{What: "no server is ever left alone, it says", breaks: func(_ *host, b *broken) {
				b.host.backoff = func(string) (time.Time, bool) { return time.Time{}, false }
			}},
			{What: "a server that has failed once is left alone for ever, it says", breaks: func(h *host, b *broken) {
				var failed sync.Map
				b.host.backoff = func(destination string) (time.Time, bool) {
					until, givenUp := h.Backoff(destination)
					if !until.IsZero() {
						failed.Store(destination, true)
						return until, givenUp
					}
					_, before := failed.Load(destination)
					return until, givenUp || before
				}
			}},
		},
		"revived-destinations-are-sent-to": {{What: "a server that is back is still left alone", breaks: func(_ *host, b *broken) {
			b.host.revive = func(string) {}
		}}},
		"remotes-are-noticed": {
			{What: "nobody is told that a server is back", breaks: func(_ *host, b *broken) {
				b.calls.remoteSeen = func(string) {}
			}},
			{What: "only transactions are told of", breaks: func(_ *host, b *broken) {
				b.calls.remoteSeen = func(string) {}
				b.calls.holdBody = func(req *http.Request, limit int, mostNesting int64) (func(), *util.JSONResponse) {
					_, origin, _, _, _ := fclient.ParseAuthorization(req.Header.Get("Authorization"))
					b.module.RemoteSeen(string(origin))
					return b.module.HoldBody(req, limit, mostNesting)
				}
			}},
			{What: "only servers whose signature is good are told of", breaks: func(h *host, b *broken) {
				b.calls.remoteSeen = func(string) {}
				h.keys = noticing{h.keys, b}
			}},
		},
		"edus-arrive-once-and-in-order": {delivering("at most 50 EDUs of a transaction are sent", func(deliver outbox.Deliver) outbox.Deliver {
			const most = 50
			return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
				t.EDUs = t.EDUs[:min(len(t.EDUs), most)]
				return deliver(ctx, t)
			}
		})},
		"edus-outlive-a-restart": {emptying("what waits for other servers is deleted at a start", "todevice_outbox")},
		"destinations-do-not-wait-for-each-other": {{What: "one transaction at a time is sent to all servers", breaks: func(_ *host, b *broken) {
			var one sync.Mutex
			b.calls.sendTransaction = func(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error {
				one.Lock()
				defer one.Unlock()
				return b.module.SendTransaction(ctx, t, deliver)
			}
		}}},
		"nobody-is-rung-for-nothing": {
			{What: "each ring is for another server too", breaks: func(_ *host, b *broken) {
				b.asks.ring = func(ctx context.Context, destination string) error {
					return errors.Join(b.asks.Host.Ring(ctx, destination), b.asks.Host.Ring(ctx, "nothing.example.org"))
				}
			}},
			{What: "messages for this server's users ring the last server again", breaks: func(_ *host, b *broken) {
				var last atomic.Pointer[string]
				b.asks.ring = func(ctx context.Context, destination string) error {
					last.Store(&destination)
					return b.asks.Host.Ring(ctx, destination)
				}
				b.asks.wakeDevices = func(position types.Position, wakeups []writer.Wakeup) {
					b.asks.Host.WakeDevices(position, wakeups)
					if destination := last.Load(); destination != nil {
						_ = b.asks.Host.Ring(context.Background(), *destination)
					}
				}
			}},
		},
	}
}

// noticing tells of servers once their signature is found to be good.
type noticing struct {
	gomatrixserverlib.JSONVerifier
	b *broken
}

func (n noticing) VerifyJSONs(ctx context.Context, requests []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	results, err := n.JSONVerifier.VerifyJSONs(ctx, requests)
	for i, result := range results {
		if result.Error == nil {
			n.b.module.RemoteSeen(string(requests[i].ServerName))
		}
	}
	return results, err
}

// takingFor200 is a fault that takes one more answer for good.
func takingFor200(what string, is func(error) bool) Fault {
	return delivering(what+" is taken for a 200", func(deliver outbox.Deliver) outbox.Deliver {
		return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
			if err := deliver(ctx, t); !is(err) {
				return err
			}
			return nil
		}
	})
}

// isRedirection reports whether an error is that of an answer with a status of 3xx.
func isRedirection(err error) bool {
	var answer gomatrix.HTTPError
	return errors.As(err, &answer) && answer.Code/100 == 3
}

// isNoJSON reports whether an error is that of a 2xx with something else than JSON.
func isNoJSON(err error) bool {
	var syntax *json.SyntaxError
	return errors.As(err, &syntax)
}

// delivering is a fault in what sends transactions to other servers.
func delivering(what string, change func(outbox.Deliver) outbox.Deliver, also ...string) Fault {
	return Fault{What: what, Also: also, breaks: func(_ *host, b *broken) {
		b.calls.sendTransaction = func(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error {
			return b.module.SendTransaction(ctx, t, change(deliver))
		}
	}}
}
