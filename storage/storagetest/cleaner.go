package storagetest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func cleanerTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"users and devices":         cleanerLists,
		"users: odd IDs":            cleanerOddIDs,
		"users: what is not a user": cleanerNoUsers,
		"purge":                     purgeQueue,
		"purge: a long queue":       purgeLong,
		"purge: context ends":       purgeCancelled,
		"purge beside commits":      purgeConcurrently,
		"forget":                    forgetDevice,
		"forget: many records":      forgetMany,
		"excess: messages":          excessMessages,
		"excess: bytes":             excessBytes,
		"excess: large contents":    excessLarge,
		"text no database takes":    cleanerRefuses,
	}
}

// wantUsers checks every page of the given length, and that the order does not change from one to the next.
func (f *fixture) wantUsers(limit int, want ...string) {
	f.Helper()
	var got []string
	for after := ""; ; {
		page, err := f.store.Users(f.ctx, after, limit)
		f.must(err)
		if got = append(got, page...); len(page) < limit {
			break
		}
		after = page[limit-1]
	}
	f.sameSet(got, want)
}

func (f *fixture) wantDevices(userID string, want ...string) {
	f.Helper()
	got, err := f.store.Devices(f.ctx, userID)
	f.must(err)
	f.sameSet(got, want)
}

func (f *fixture) sameSet(got, want []string) {
	f.Helper()
	slices.Sort(got)
	if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
		f.Fatalf("got %q, want %q", got, want)
	}
}

func (f *fixture) wantPurged(device types.Device, through types.Position, want int) {
	f.Helper()
	purged, err := f.store.Purge(f.ctx, device, through)
	f.must(err)
	if purged != want {
		f.Fatalf("%d messages were purged, want %d", purged, want)
	}
}

func (f *fixture) wantExcess(device types.Device, messages int, bytes int64, want types.Position) {
	f.Helper()
	got, err := f.store.Excess(f.ctx, device, messages, bytes)
	f.must(err)
	if got != want {
		f.Fatalf("with the limits %d and %d the excess ends at %d, want %d", messages, bytes, got, want)
	}
}

// record commits transaction records of the device.
func (f *fixture) record(device types.Device, n int) (keys []types.TransactionKey) {
	f.Helper()
	var transactions []storage.Transaction
	for i := range n {
		key := types.TransactionKey{Device: device, EventType: fmt.Sprint("m.", i%3), TransactionID: fmt.Sprint(i)}
		keys = append(keys, key)
		transactions = append(transactions, transaction(key, 1))
	}
	f.commit(f.batch(nil, transactions...))
	return keys
}

func cleanerLists(f *fixture) {
	f.wantUsers(10)
	f.wantDevices(alice.UserID)
	tablet, watch := types.Device{UserID: alice.UserID, DeviceID: "TABLET"}, types.Device{UserID: alice.UserID, DeviceID: "WATCH"}
	f.send(alice, 3)
	f.send(tablet, 1)
	f.record(alice, 4)
	f.record(watch, 4)
	f.record(bob, 2)
	f.send(types.Device{UserID: "@zoe:example.org", DeviceID: "PHONE"}, 2)
	for limit := range 5 {
		if limit == 0 {
			continue
		}
		f.wantUsers(limit, alice.UserID, bob.UserID, "@zoe:example.org")
	}
	f.wantDevices(alice.UserID, "PHONE", "TABLET", "WATCH")
	f.wantDevices(bob.UserID, "LAPTOP")
	f.wantDevices("@nobody:example.org")
	f.wantDevices("@Alice:example.org")
	for _, none := range []int{0, -1} {
		if page, err := f.store.Users(f.ctx, "", none); err != nil || len(page) != 0 {
			f.Errorf("with the limit %d there are %q (%v)", none, page, err)
		}
	}
	f.wantPurged(tablet, everLater, 1)
	f.must(f.store.Forget(f.ctx, watch))
	f.must(f.store.Forget(f.ctx, bob))
	f.wantDevices(alice.UserID, "PHONE")
	f.wantUsers(1, alice.UserID, "@zoe:example.org")
}

func cleanerOddIDs(f *fixture) {
	var users []string
	for i, id := range []string{"@", "@:", "@%:x", "@_:x", "@A:x", "@a:x", "@'; {\"},NULL\\:x", "@žluť:x", "@馬:x", "@\U0001F600:x", "@a :x", "@" + incompressible(1000)} {
		device := types.Device{UserID: id, DeviceID: "'; {\"},NULL\\ é"}
		if i%2 == 0 {
			f.send(device, 1)
		} else {
			f.record(device, 1)
		}
		f.wantDevices(id, device.DeviceID)
		users = append(users, id)
	}
	for limit := 1; limit <= len(users)+1; limit++ {
		f.wantUsers(limit, users...)
	}
	empty := types.Device{UserID: "@a:x"}
	f.send(empty, 1)
	f.record(empty, 1)
	f.wantDevices("@a:x", "", "'; {\"},NULL\\ é")
}

// Servers and the host's stream have transaction records too.
func cleanerNoUsers(f *fixture) {
	for _, name := range []string{"", " @a:x", "!", "0", "?", "A", "a.example.org", "Z", "example.org", "remote.example.org:8448", "[::1]", "~", "é", "x@y"} {
		f.record(types.Device{UserID: name}, 2)
	}
	for limit := range 3 {
		if limit > 0 {
			f.wantUsers(limit)
		}
	}
	f.record(alice, 1)
	f.send(bob, 1)
	f.wantUsers(1, alice.UserID, bob.UserID)
	f.wantUsers(2, alice.UserID, bob.UserID)
	f.wantUsers(3, alice.UserID, bob.UserID)
}

func purgeQueue(f *fixture) {
	tablet := types.Device{UserID: alice.UserID, DeviceID: "TABLET"}
	queued, others, tablets := f.send(alice, 5), f.send(bob, 2), f.send(tablet, 2)
	records := f.record(alice, 1)
	f.wantPurged(alice, 0, 0)
	f.wantPurged(alice, queued[0].Position-1, 0)
	f.wantPurged(types.Device{UserID: alice.UserID, DeviceID: "NONE"}, everLater, 0)
	f.wantMessages(alice, queued)
	f.wantPurged(alice, queued[1].Position, 2)
	f.wantPurged(alice, queued[1].Position, 0)
	f.wantMessages(alice, queued[2:])
	f.wantPurged(alice, everLater, 3)
	f.wantMessages(alice, nil)
	f.wantMessages(bob, others)
	f.wantMessages(tablet, tablets)
	f.wantStored(records, 0)
	f.wantState(storage.State{Writer: f.writer, Last: f.last})
}

// More than one statement deletes, and a last one that has nothing left to delete.
func purgeLong(f *fixture) {
	for _, n := range []int{1000, 3007} {
		queued, others := f.send(alice, n), f.send(bob, 2)
		f.wantPurged(alice, queued[n-2].Position, n-1)
		f.wantMessages(alice, queued[n-1:])
		f.wantPurged(alice, everLater, 1)
		f.wantMessages(bob, others)
		f.wantPurged(bob, everLater, 2)
	}
}

func purgeCancelled(f *fixture) {
	f.send(alice, 2)
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	_, err := f.store.Purge(ctx, alice, everLater)
	f.mustBe(err, context.Canceled)
	f.mustBe(err, storage.ErrTransient)
	f.wantPurged(alice, everLater, 2)
}

// What several calls delete is counted once, and what a commit adds meanwhile stays or is counted.
func purgeConcurrently(f *fixture) {
	queued := f.send(alice, 2500)
	purged := make([]int, 3)
	var calls []func() error
	for i := range purged {
		calls = append(calls, func() (err error) {
			purged[i], err = f.store.Purge(f.ctx, alice, queued[len(queued)-1].Position)
			return err
		})
	}
	batch := f.batch([]storage.Delivery{delivery(`{}`, alice)})
	calls = append(calls, func() error { return f.store.Commit(f.ctx, batch) })
	f.must(concurrently(calls...))
	f.last = batch.Last
	if got := purged[0] + purged[1] + purged[2]; got != len(queued) {
		f.Errorf("%d messages were purged, want %d: %v", got, len(queued), purged)
	}
	f.wantMessages(alice, sent(batch.Deliveries))
}

func forgetDevice(f *fixture) {
	tablet := types.Device{UserID: alice.UserID, DeviceID: "TABLET"}
	queued := f.send(alice, 2)
	gone, kept := f.record(alice, 5), append(f.record(tablet, 2), f.record(bob, 2)...)
	for range 2 {
		f.must(f.store.Forget(f.ctx, alice))
		f.wantStored(gone, len(gone))
		f.wantStored(kept, 0)
	}
	f.must(f.store.Forget(f.ctx, types.Device{UserID: alice.UserID}))
	f.wantStored(kept, 0)
	f.wantMessages(alice, queued)
	f.record(alice, 5) // they may come again
}

func forgetMany(f *fixture) {
	for _, n := range []int{1000, 2003} {
		keys := f.record(alice, n)
		f.must(f.store.Forget(f.ctx, alice))
		f.wantStored(keys, n)
	}
}

func excessMessages(f *fixture) {
	f.wantExcess(alice, 1, 1, 0)
	queued := f.send(alice, 6)
	f.send(bob, 10)
	for limit := 1; limit <= 8; limit++ {
		want := types.Position(0)
		if limit < len(queued) {
			want = queued[len(queued)-limit-1].Position
		}
		f.wantExcess(alice, limit, 0, want)
		f.wantExcess(alice, limit, 1<<40, want)
	}
	f.wantExcess(alice, 0, 0, 0)
	f.wantExcess(alice, -1, -1, 0)
	f.wantExcess(types.Device{UserID: alice.UserID}, 1, 1, 0)
	f.wantPurged(alice, queued[3].Position, 4)
	f.wantExcess(alice, 2, 0, 0)
	f.wantExcess(alice, 1, 0, queued[4].Position)
}

func excessBytes(f *fixture) {
	// The third has fewer characters than bytes.
	contents := []string{`{"a":"12345"}`, `{}`, `{"é":"马"}`, `{"b":1}`, `{"last":"one"}`}
	var deliveries []storage.Delivery
	for _, content := range contents {
		deliveries = append(deliveries, delivery(content, alice), delivery(`{"b":"another's"}`, bob))
	}
	f.commit(f.batch(deliveries))
	queued := f.messages(alice)
	total := 0
	for i := len(queued) - 1; i >= 0; i-- {
		total += len(contents[i])
		before := types.Position(0) // what is in excess when this one still fits
		if i > 0 {
			before = queued[i-1].Position
		}
		f.wantExcess(alice, 0, int64(total), before)
		f.wantExcess(alice, 100, int64(total), before)
		if i < len(queued)-1 {
			f.wantExcess(alice, 0, int64(total-1), queued[i].Position)
			f.wantExcess(alice, len(queued)-i-1, int64(total), queued[i].Position)
			f.wantExcess(alice, 1, int64(total), queued[len(queued)-2].Position)
		}
	}
	// The newest is kept, however large it is.
	for _, little := range []int64{1, int64(len(contents[4]) - 1)} {
		f.wantExcess(alice, 0, little, queued[3].Position)
	}
	f.wantPurged(alice, queued[3].Position, 4)
	f.wantExcess(alice, 0, 1, 0)
}

func excessLarge(f *fixture) {
	large := `{"c":"` + strings.Repeat("y", 6<<20) + `"}`
	f.commit(f.batch([]storage.Delivery{delivery(large, alice), delivery(large, alice), delivery(`{}`, alice)}))
	queued := f.messages(alice)
	f.wantExcess(alice, 0, int64(2*len(large)+2), 0)
	f.wantExcess(alice, 0, int64(2*len(large)+1), queued[0].Position)
	f.wantExcess(alice, 0, int64(len(large)+1), queued[1].Position)
}

func cleanerRefuses(f *fixture) {
	for _, bad := range []string{"@a\x00b", "\xff\xfe", "\xed\xa0\x80"} {
		device := types.Device{UserID: alice.UserID, DeviceID: bad}
		_, err := f.store.Users(f.ctx, bad, 1)
		f.wantRefused(err)
		_, err = f.store.Devices(f.ctx, bad)
		f.wantRefused(err)
		_, err = f.store.Purge(f.ctx, device, everLater)
		f.wantRefused(err)
		f.wantRefused(f.store.Forget(f.ctx, device))
		_, err = f.store.Excess(f.ctx, device, 1, 1)
		f.wantRefused(err)
	}
}

func cleanerErrors(ctx context.Context, store storage.Cleaner) map[string]error {
	errs := map[string]error{}
	_, errs["Users"] = store.Users(ctx, "", 1)
	_, errs["Devices"] = store.Devices(ctx, alice.UserID)
	_, errs["Purge"] = store.Purge(ctx, alice, everLater)
	errs["Forget"] = store.Forget(ctx, alice)
	_, errs["Excess"] = store.Excess(ctx, alice, 1, 1)
	return errs
}
