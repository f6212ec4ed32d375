package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

var errNetwork = errors.New("connection reset by peer")

// answer is the answer of a server that does not take a transaction.
func answer(code int) error {
	return gomatrix.HTTPError{Code: code, Contents: []byte(`{"errcode":"M_TEST"}`), Message: "Failed to PUT JSON"}
}

// reporter is a test, of whichever kind.
type reporter interface {
	Errorf(format string, args ...any)
}

// remote is another server. It takes every message once, by its message_id, and checks of every
// transaction what must hold of all.
type remote struct {
	mu       sync.Mutex
	report   reporter
	answers  func(ctx context.Context, t gomatrixserverlib.Transaction) error // nil accepts
	keeps    bool                                                             // what it does not answer with a 200, too
	attempts []gomatrixserverlib.Transaction                                  // all that came
	accepted []gomatrixserverlib.Transaction
	arrived  []string       // the message_ids of ours, in the order of their first arrival
	copies   map[string]int // how often each was in a transaction that was accepted
	bodies   map[string]string
}

func newRemote(report reporter) *remote {
	return &remote{report: report, copies: make(map[string]int), bodies: make(map[string]string)}
}

// on has f answer from now on.
func (r *remote) on(f func(ctx context.Context, t gomatrixserverlib.Transaction) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = f
}

// fails answers everything with err.
func (r *remote) fails(err error) {
	r.on(func(context.Context, gomatrixserverlib.Transaction) error { return err })
}

// refuses answers with a code every transaction that holds one of the messages.
func (r *remote) refuses(code int, messageIDs ...string) {
	r.on(func(_ context.Context, t gomatrixserverlib.Transaction) error {
		for _, id := range idsOf(t) {
			if slices.Contains(messageIDs, id) {
				return answer(code)
			}
		}
		return nil
	})
}

func (r *remote) deliver(ctx context.Context, t gomatrixserverlib.Transaction) error {
	r.mu.Lock()
	r.check(t)
	r.attempts = append(r.attempts, t)
	f := r.answers
	r.mu.Unlock()
	var err error
	if f != nil {
		err = f(ctx, t)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.accepted = append(r.accepted, t)
		for _, id := range idsOf(t) {
			r.copies[id]++
		}
	}
	if err == nil || r.keeps {
		r.keep(t)
	}
	return err
}

func (r *remote) keep(t gomatrixserverlib.Transaction) {
	for _, id := range idsOf(t) {
		if !slices.Contains(r.arrived, id) {
			r.arrived = append(r.arrived, id)
		}
	}
}

// check holds a transaction against the specification and against what came before.
func (r *remote) check(t gomatrixserverlib.Transaction) {
	body, err := json.Marshal(t)
	if err != nil {
		r.report.Errorf("a transaction has no JSON: %v", err)
	}
	key := string(t.Origin) + " " + string(t.TransactionID)
	if before, ok := r.bodies[key]; ok && before != string(body) {
		r.report.Errorf("transaction %s was\n%s\nand is\n%s", key, before, body)
	}
	r.bodies[key] = string(body)
	if len(t.PDUs) == 0 && len(t.EDUs) == 0 {
		r.report.Errorf("an empty transaction was delivered")
	}
	if len(t.EDUs) > outbox.MaxEDUs || len(t.PDUs) > 50 {
		r.report.Errorf("a transaction has %d EDUs and %d PDUs", len(t.EDUs), len(t.PDUs))
	}
	if len(body) > outbox.MaxTransactionBytes && len(idsOf(t)) > 0 && len(t.EDUs)+len(t.PDUs) > 1 {
		r.report.Errorf("a transaction of %d EDUs and %d PDUs has %d bytes", len(t.EDUs), len(t.PDUs), len(body))
	}
	hosts := false
	for _, edu := range t.EDUs {
		if outbox.IsDoorbell(edu) {
			r.report.Errorf("a doorbell left the server")
		}
		if edu.Type == spec.MDirectToDevice && hosts {
			r.report.Errorf("a message comes after the host's EDUs")
		}
		hosts = hosts || edu.Type != spec.MDirectToDevice
		if edu.Type == spec.MDirectToDevice && edu.Origin != string(t.Origin) {
			r.report.Errorf("a message of %s is in a transaction of %s", edu.Origin, t.Origin)
		}
	}
	if t.PDUs == nil {
		r.report.Errorf("pdus is null")
	}
}

// idsOf returns the message_ids of a transaction, but for that of an EDU without messages.
func idsOf(t gomatrixserverlib.Transaction) (ids []string) {
	for _, edu := range t.EDUs {
		var content struct {
			MessageID string `json:"message_id"`
			Messages  map[string]json.RawMessage
		}
		if edu.Type == spec.MDirectToDevice && json.Unmarshal(edu.Content, &content) == nil && len(content.Messages) > 0 {
			ids = append(ids, content.MessageID)
		}
	}
	return ids
}

func (r *remote) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.arrived)
}

// tried returns every transaction that came.
func (r *remote) tried() []gomatrixserverlib.Transaction {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.attempts)
}

// took returns the transactions that were accepted.
func (r *remote) took() []gomatrixserverlib.Transaction {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.accepted)
}

// slow takes its time to accept a transaction.
func (r *remote) slow(c *clock, pause time.Duration) {
	r.on(func(context.Context, gomatrixserverlib.Transaction) error {
		c.advance(pause)
		return nil
	})
}
