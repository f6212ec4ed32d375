package smallhost

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
)

func inboundFaults() map[string][]Fault {
	return map[string][]Fault{
		"edus-are-passed": {
			{What: "only the first EDU of a transaction is passed", breaks: func(_ *host, b *broken) {
				b.calls.receiveEDUs = func(ctx context.Context, origin string, contents []json.RawMessage) error {
					return b.module.ReceiveEDUs(ctx, origin, contents[:1])
				}
			}},
			{What: "a transaction with PDUs of unknown rooms is refused", breaks: func(_ *host, b *broken) {
				b.calls.holdBody = func(req *http.Request, limit int, mostNesting int64) (func(), *util.JSONResponse) {
					release, refusal := b.module.HoldBody(req, limit, mostNesting)
					if refusal != nil {
						return nil, refusal
					}
					text, _ := io.ReadAll(req.Body)
					req.Body = io.NopCloser(bytes.NewReader(text))
					if bytes.Contains(text, []byte(`"pdus":[{`)) {
						release()
						res := refuse(http.StatusForbidden, spec.ErrorForbidden, "There is no such room.")
						return nil, &res
					}
					return release, nil
				}
			}},
			{What: "no EDU is passed", breaks: func(_ *host, b *broken) {
				b.calls.receiveEDUs = func(context.Context, string, []json.RawMessage) error { return nil }
			}},
		},
		"origins-are-authenticated": {{What: "every signature is good", breaks: func(h *host, _ *broken) {
			h.keys = believing{}
		}}},
		"repetitions-are-stored-once": {{What: "a transaction ID is one of all servers", breaks: func(_ *host, b *broken) {
			var known sync.Map
			b.calls.holdBody = func(req *http.Request, limit int, mostNesting int64) (func(), *util.JSONResponse) {
				if _, again := known.LoadOrStore(req.PathValue("txnID"), true); again {
					res := ok(map[string]any{"pdus": struct{}{}})
					return nil, &res
				}
				return b.module.HoldBody(req, limit, mostNesting)
			}
		}}, {What: "each EDU gets a message_id of its own", breaks: func(_ *host, b *broken) {
			b.calls.receiveEDUs = func(ctx context.Context, origin string, contents []json.RawMessage) error {
				for i, content := range contents {
					var fields map[string]json.RawMessage
					if json.Unmarshal(content, &fields) == nil {
						fields["message_id"] = marshal(rand.Text())
						contents[i] = marshal(fields)
					}
				}
				return b.module.ReceiveEDUs(ctx, origin, contents)
			}
		}}},
		"edus-are-stored-before-the-answer": {{What: "what could not be stored gets a 200", breaks: func(_ *host, b *broken) {
			b.calls.receiveEDUs = func(ctx context.Context, origin string, contents []json.RawMessage) error {
				if err := b.module.ReceiveEDUs(ctx, origin, contents); errors.Is(err, consumers.ErrLimitExceeded) {
					return err
				}
				return nil
			}
		}}},
		"limited-servers-are-told-to-wait": {{What: "a server that sends too much gets a 5xx", breaks: func(_ *host, b *broken) {
			b.calls.receiveEDUs = func(ctx context.Context, origin string, contents []json.RawMessage) error {
				err := b.module.ReceiveEDUs(ctx, origin, contents)
				if errors.Is(err, consumers.ErrLimitExceeded) {
					err = errors.New("too much")
				}
				return err
			}
		}}},
		"bodies-are-held": {{What: "bodies are read without a bound", breaks: func(_ *host, b *broken) {
			b.calls.holdBody = func(*http.Request, int, int64) (func(), *util.JSONResponse) { return func() {}, nil }
		}}},
		"device-lists-are-marked-stale": {{What: "nobody is asked for devices", breaks: func(_ *host, b *broken) {
			b.host.markDeviceListStale = func(context.Context, string, string) error { return nil }
		}}},
	}
}

// believing takes every signature for a good one.
type believing struct{}

func (believing) VerifyJSONs(_ context.Context, requests []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	return make([]gomatrixserverlib.VerifyJSONResult, len(requests)), nil
}
