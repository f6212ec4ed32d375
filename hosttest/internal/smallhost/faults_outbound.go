package smallhost

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"

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
		"failures-are-told": {delivering("a failure is taken for a 200", func(deliver outbox.Deliver) outbox.Deliver {
			return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
				_ = deliver(ctx, t)
				return nil
			}
		})},
		"refusals-are-told": {delivering("the status of an answer is lost", func(deliver outbox.Deliver) outbox.Deliver {
			return func(ctx context.Context, t gomatrixserverlib.Transaction) error {
				err := deliver(ctx, t)
				if answer := (gomatrix.HTTPError{}); errors.As(err, &answer) {
					return fmt.Errorf("the answer was %d", answer.Code)
				}
				return err
			}
		})},
		"backoff-is-told": {{What: "no server is ever left alone, it says", breaks: func(_ *host, b *broken) {
			b.host.backoff = func(string) (time.Time, bool) { return time.Time{}, false }
		}}},
		"revived-destinations-are-sent-to": {{What: "a server that is back is still left alone", breaks: func(_ *host, b *broken) {
			b.host.revive = func(string) {}
		}}},
		"remotes-are-noticed": {{What: "nobody is told that a server is back", breaks: func(_ *host, b *broken) {
			b.calls.remoteSeen = func(string) {}
		}}},
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

// delivering is a fault in what sends transactions to other servers.
func delivering(what string, change func(outbox.Deliver) outbox.Deliver, also ...string) Fault {
	return Fault{What: what, Also: also, breaks: func(_ *host, b *broken) {
		b.calls.sendTransaction = func(ctx context.Context, t gomatrixserverlib.Transaction, deliver outbox.Deliver) error {
			return b.module.SendTransaction(ctx, t, change(deliver))
		}
	}}
}
