package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// stranger is a transaction that comes from nobody who may send it.
type stranger struct {
	name        string
	status      int
	publish     func(*gomatrixserverlib.ServerKeyFields)
	transaction func(here, victim string) OwnTransaction
}

func strangers() []stranger {
	const elsewhere = "elsewhere.example.org"
	anHourAgo := spec.AsTimestamp(time.Now().Add(-time.Hour))
	usual := func(string, string) OwnTransaction { return OwnTransaction{} }
	header := func(x OwnTransaction, old, replacement string) OwnTransaction {
		x.Header = func(h string) string { return strings.Replace(h, old, replacement, 1) }
		return x
	}
	return []stranger{
		{name: "a key that the server does not have", status: 401, transaction: func(string, string) OwnTransaction {
			return OwnTransaction{KeyID: "ed25519:other"}
		}},
		{name: "for another server", status: 400, transaction: func(string, string) OwnTransaction {
			return OwnTransaction{For: elsewhere}
		}},
		{name: "for another server, said to be for this one", status: 401, transaction: func(here, _ string) OwnTransaction {
			return header(OwnTransaction{For: elsewhere}, elsewhere, here)
		}},
		{name: "for another server, said to be for nobody", status: 401, transaction: func(string, string) OwnTransaction {
			return header(OwnTransaction{For: elsewhere}, `,destination="`+elsewhere+`"`, "")
		}},
		{name: "under another server's name", status: 401, transaction: func(_, victim string) OwnTransaction {
			return OwnTransaction{Header: func(h string) string {
				before, rest, _ := strings.Cut(h, `origin="`)
				_, after, _ := strings.Cut(rest, `"`)
				return before + `origin="` + victim + `"` + after
			}}
		}},
		{name: "a key whose time is over", status: 401, transaction: usual, publish: func(f *gomatrixserverlib.ServerKeyFields) {
			f.ValidUntilTS = anHourAgo
		}},
		{name: "a key that was given up", status: 401, transaction: usual, publish: func(f *gomatrixserverlib.ServerKeyFields) {
			for id, key := range f.VerifyKeys {
				f.OldVerifyKeys[id] = gomatrixserverlib.OldVerifyKey{VerifyKey: key, ExpiredTS: anHourAgo}
			}
			clear(f.VerifyKeys)
		}},
	}
}

// Of a transaction without a signature that holds, here and now, nothing is stored, and its message_id is not used up.
func TestInboundSignatures(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here := SharedFederated(t, b)
		db := here.OpenDatabase(t)
		victim, bob := NewFakeRemote(t, here), Register(t, here, "bob")
		since := bob.Settle(t, "")
		n := 0
		for _, who := range strangers() {
			remote := NewFakeRemote(t, here)
			remote.Publish(who.publish)
			edus := []any{remote.ToDevice("id", To(object{"n": n}, bob)), victim.ToDevice(unique("id"), To(object{"n": n}, bob))}
			x := who.transaction(here.name, victim.Name)
			x.ID, x.EDUs = unique("txn"), edus
			for range 2 { // the second time the key is known, or known to be bad
				if a := remote.Send(t, here, x); a.Status != who.status {
					t.Errorf("%s: want %d, got %v", who.name, who.status, a)
				}
			}
			var remembered int
			err := db.QueryRow("SELECT COUNT(*) FROM todevice_transactions WHERE user_id IN ($1, $2)", remote.Name, victim.Name).Scan(&remembered)
			if err != nil || remembered > 0 || queued(t, db, bob) > 0 {
				t.Errorf("%s: %d transactions and %d messages are stored, %v", who.name, remembered, queued(t, db, bob), err)
			}
			if who.publish != nil {
				continue
			}
			// The same server, as it should: which shows that the signature alone was at fault.
			if a := remote.Send(t, here, OwnTransaction{ID: x.ID, EDUs: edus}); a.Status != http.StatusOK {
				t.Errorf("%s, properly signed: want 200, got %v", who.name, a)
			}
			var events []Event
			events, since = bob.Receive(t, since, 1)
			wantNumbers(t, numbers(t, events), n, n+1)
			since = bob.Settle(t, since)
			eventually(t, "the queue is empty", func() (bool, any) { left := queued(t, db, bob); return left == 0, left })
			n++
		}
	})
}
