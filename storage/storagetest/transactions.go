package storagetest

import (
	"fmt"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// transaction is one that expires at the moment.
func transaction(key types.TransactionKey, micros int64) storage.Transaction {
	return storage.Transaction{TransactionKey: key, ExpiresAt: moment(micros)}
}

// moment is the given number of microseconds after a fixed time.
func moment(micros int64) time.Time {
	return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(micros) * time.Microsecond)
}

func transactionTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"stored":           transactionsStored,
		"nothing asked":    transactionsNone,
		"forget: boundary": transactionsBoundary,
		"forget: limit":    transactionsLimit,
	}
}

func transactionsStored(f *fixture) {
	key := types.TransactionKey{Device: alice, EventType: "m.a", TransactionID: "1"}
	odd := types.TransactionKey{
		Device:    types.Device{UserID: "@o'hara{\"},\\:x", DeviceID: "<&>\u2028 😀"},
		EventType: `NULL`, TransactionID: `["a",null]`,
	}
	empty := types.TransactionKey{Device: alice}
	f.commit(f.batch(nil, transaction(key, 1), transaction(odd, 1), transaction(empty, 1)))

	var others []types.TransactionKey
	for _, change := range []func(*types.TransactionKey){
		func(k *types.TransactionKey) { k.UserID = bob.UserID },
		func(k *types.TransactionKey) { k.DeviceID = "TABLET" },
		func(k *types.TransactionKey) { k.EventType = "m.b" },
		func(k *types.TransactionKey) { k.TransactionID = "2" },
		func(k *types.TransactionKey) { k.EventType = "M.A" },
	} {
		other := key
		change(&other)
		others = append(others, other)
	}
	got, err := f.store.Stored(f.ctx, append(others, key, odd, empty, key))
	f.must(err)
	for _, want := range []types.TransactionKey{key, odd, empty} {
		if _, ok := got[want]; !ok {
			f.Errorf("%+v is missing", want)
		}
	}
	if len(got) != 3 {
		f.Errorf("got %d keys, want 3", len(got))
	}
	if got, err = f.store.Stored(f.ctx, others); err != nil || len(got) != 0 {
		f.Errorf("got %d keys and the error %v for keys that are not there", len(got), err)
	}
}

func transactionsNone(f *fixture) {
	got, err := f.store.Stored(f.ctx, nil)
	f.must(err)
	if len(got) != 0 {
		f.Error("got keys that nobody asked for")
	}
}

// storeTransactions stores n transactions, one microsecond apart from zero on.
func (f *fixture) storeTransactions(n int) []types.TransactionKey {
	var keys []types.TransactionKey
	var transactions []storage.Transaction
	for i := range n {
		key := types.TransactionKey{Device: alice, EventType: eventType, TransactionID: fmt.Sprint(n - i)}
		keys = append(keys, key)
		transactions = append(transactions, transaction(key, int64(i)))
	}
	f.commit(f.batch(nil, transactions...))
	return keys
}

func (f *fixture) wantStored(keys []types.TransactionKey, from int) {
	f.Helper()
	got, err := f.store.Stored(f.ctx, keys)
	f.must(err)
	for i, key := range keys {
		if _, ok := got[key]; ok != (i >= from) {
			f.Errorf("transaction %d is there: %v", i, ok)
		}
	}
}

func (f *fixture) forget(before time.Time, limit, want int) {
	f.Helper()
	got, err := f.store.ForgetTransactions(f.ctx, before, limit)
	f.must(err)
	if got != want {
		f.Errorf("%d transactions were forgotten, want %d", got, want)
	}
}

func transactionsBoundary(f *fixture) {
	keys := f.storeTransactions(5)
	f.forget(moment(0), 10, 0)
	f.wantStored(keys, 0)
	f.forget(moment(2), 10, 2)
	f.wantStored(keys, 2)
	f.forget(moment(100).In(time.FixedZone("", 3600)), 10, 3)
	f.wantStored(keys, 5)
	f.forget(moment(100), 10, 0)
	// A key that was forgotten may be stored again.
	f.storeTransactions(5)
}

func transactionsLimit(f *fixture) {
	keys := f.storeTransactions(10)
	f.forget(moment(9), 0, 0)
	f.forget(moment(9), 4, 4)
	f.wantStored(keys, 4)
	f.forget(moment(9), 5, 5)
	f.wantStored(keys, 9)
	f.forget(moment(9), 5, 0)
}
