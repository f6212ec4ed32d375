package storagetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func inspectorTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"nothing":                    inspectNothing,
		"queues":                     inspectQueues,
		"queues that change":         inspectChanging,
		"queues: large contents":     inspectLarge,
		"envelopes":                  inspectEnvelopes,
		"envelopes: message IDs":     inspectMessageIDs,
		"envelopes: whatever stands": inspectOddContents,
		"text no database takes":     inspectorRefuses,
	}
}

func queueOf(device types.Device, messages []types.Message) storage.Queue {
	q := storage.Queue{
		Device: device, Messages: len(messages), Oldest: messages[0].Position, Newest: messages[len(messages)-1].Position,
	}
	for _, m := range messages {
		q.Bytes += int64(len(m.Content))
	}
	return q
}

// wantQueues checks the totals, and every page of the given length in both orders.
func (f *fixture) wantQueues(limit int, want []storage.Queue) {
	f.Helper()
	orders := map[storage.Order]func(a, b storage.Queue) int{
		storage.BySize: func(a, b storage.Queue) int { return cmp.Compare(b.Messages, a.Messages) },
		storage.ByAge:  func(a, b storage.Queue) int { return cmp.Compare(a.Oldest, b.Oldest) },
	}
	for order, compare := range orders {
		want = slices.SortedFunc(slices.Values(want), func(a, b storage.Queue) int {
			return cmp.Or(compare(a, b), cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.DeviceID, b.DeviceID))
		})
		if got := f.queues(order, limit); !slices.Equal(got, want) {
			f.Fatalf("with the order %d and the limit %d the queues are %+v, want %+v", order, limit, got, want)
		}
		counted := slices.Clone(want)
		for i := range counted {
			counted[i].Bytes = 0
		}
		if got := f.pages(f.store.CountQueues, order, limit); !slices.Equal(got, counted) {
			f.Fatalf("with the order %d and the limit %d the queues are counted as %+v, want %+v", order, limit, got, counted)
		}
	}
	totals := storage.Totals{Queues: len(want)}
	for _, q := range want {
		totals.Messages += q.Messages
		if totals.Oldest == 0 || q.Oldest < totals.Oldest {
			totals.Oldest = q.Oldest
		}
	}
	got, err := f.store.Totals(f.ctx)
	f.must(err)
	if got.Outbox = (storage.Line{}); got != totals {
		f.Fatalf("the totals are %+v, want %+v", got, totals)
	}
}

func (f *fixture) queues(order storage.Order, limit int) []storage.Queue {
	f.Helper()
	return f.pages(f.store.Queues, order, limit)
}

type listQueues func(context.Context, storage.Order, *storage.Queue, int) ([]storage.Queue, error)

func (f *fixture) pages(list listQueues, order storage.Order, limit int) (queues []storage.Queue) {
	f.Helper()
	for after := (*storage.Queue)(nil); ; {
		page, err := list(f.ctx, order, after, limit)
		f.must(err)
		if queues = append(queues, page...); len(page) < limit {
			return queues
		}
		after = &page[limit-1]
	}
}

func inspectNothing(f *fixture) {
	totals, err := f.store.Totals(f.ctx)
	f.must(err)
	if totals != (storage.Totals{}) {
		f.Errorf("the totals are %+v", totals)
	}
	f.wantQueues(1, nil)
	f.wantEnvelopes(alice, 10, nil)
	f.send(alice, 1)
	for _, none := range []int{0, -1} {
		queues, err := f.store.Queues(f.ctx, storage.ByAge, nil, none)
		f.must(err)
		messages, err := f.store.Envelopes(f.ctx, alice, 0, none)
		f.must(err)
		if len(queues)+len(messages) > 0 {
			f.Errorf("with the limit %d there are %+v and %+v", none, queues, messages)
		}
	}
	if _, err = f.store.Queues(f.ctx, storage.Order(7), nil, 1); err == nil {
		f.Error("an unknown order was accepted")
	}
}

func inspectQueues(f *fixture) {
	var want []storage.Queue
	for i, n := range []int{3, 1, 4, 1, 5, 1, 2, 6, 5, 3} {
		device := types.Device{UserID: fmt.Sprintf("@%d:x", i%4), DeviceID: fmt.Sprint(9 - i)}
		want = append(want, queueOf(device, f.send(device, n)))
	}
	f.record(alice, 3) // no queue
	for limit := 1; limit <= len(want)+1; limit++ {
		f.wantQueues(limit, want)
	}
}

// A queue that is gone is a place in the order all the same.
func inspectChanging(f *fixture) {
	queued := map[types.Device][]types.Message{}
	for i, n := range []int{4, 3, 3, 2} {
		device := types.Device{UserID: fmt.Sprintf("@%d:x", i), DeviceID: "A"}
		queued[device] = f.send(device, n)
	}
	for _, order := range []storage.Order{storage.BySize, storage.ByAge} {
		all := f.queues(order, 10)
		f.wantPurged(all[1].Device, everLater, all[1].Messages)
		page, err := f.store.Queues(f.ctx, order, &all[1], 10)
		f.must(err)
		if !slices.Equal(page, all[2:]) {
			f.Errorf("after a queue that is gone come %+v, want %+v", page, all[2:])
		}
	}
}

func inspectLarge(f *fixture) {
	large := `{"c":"` + strings.Repeat("é", 3<<20) + `"}`
	f.commit(f.batch([]storage.Delivery{delivery(large, alice), delivery(`{}`, alice), delivery(`{"é":1}`, bob)}))
	f.wantQueues(10, []storage.Queue{queueOf(alice, f.messages(alice)), queueOf(bob, f.messages(bob))})
}

// wantEnvelopes checks every page of the given length.
func (f *fixture) wantEnvelopes(device types.Device, limit int, want []storage.Envelope) {
	f.Helper()
	var got []storage.Envelope
	for after := types.Position(0); ; {
		page, err := f.store.Envelopes(f.ctx, device, after, limit)
		f.must(err)
		if got = append(got, page...); len(page) < limit {
			break
		}
		after = page[limit-1].Position
	}
	if !slices.Equal(got, want) {
		f.Fatalf("the messages are %+v, want %+v", got, want)
	}
}

func envelopeOf(m types.Message, messageID string) storage.Envelope {
	return storage.Envelope{Position: m.Position, Sender: m.Sender, Type: m.Type, MessageID: messageID, Bytes: len(m.Content)}
}

func inspectEnvelopes(f *fixture) {
	var want []storage.Envelope
	for _, m := range f.send(alice, 7) {
		want = append(want, envelopeOf(m, ""))
	}
	f.send(bob, 3)
	for limit := 1; limit <= len(want)+1; limit++ {
		f.wantEnvelopes(alice, limit, want)
	}
	f.wantEnvelopes(types.Device{UserID: alice.UserID}, 10, nil)
}

func inspectMessageIDs(f *fixture) {
	escaped := strings.Repeat(`\u00e9`, 200) // 400 bytes
	f.wantMessageIDs(map[string]string{
		`{}`:                         "",
		`{"org.matrix.msgid":"abc"}`: "abc",
		`{"org.matrix.msgid":""}`:    "",
		`{"a":{"b":["}"]},"org.matrix.msgid":"behind"}`:                                             "behind",
		"{ \"org.matrix.msgid\"\t:\r\n \"spaced\" }":                                                "spaced",
		`{"a":1 , "org.matrix.msgid":"a\"b\\c\/d\n\u00e9\ud83d\ude00"}`:                             "a\"b\\c/d\né😀",
		`{"org.matrix.msgid":"ends with a quote\""}`:                                                "ends with a quote\"",
		`{"org.matrix.msgid":"ends with a backslash\\"}`:                                            `ends with a backslash\`,
		`{"org.matrix.msgid":"\\","x":"y"}`:                                                         `\`,
		`{"org.matrix.msgid":"nul\u0000"}`:                                                          "nul\x00",
		`{"org.matrix.msgid":"half\ud83d"}`:                                                         "half\uFFFD",
		`{"org.matrix.msgid":7}`:                                                                    "",
		`{"org.matrix.msgid":null}`:                                                                 "",
		`{"org.matrix.msgid":{"org":"x"}}`:                                                          "",
		`{"org.matrix.msgid":["x"]}`:                                                                "",
		`{"orgxmatrixxmsgid":"other"}`:                                                              "",
		`{"ORG.MATRIX.MSGID":"other"}`:                                                              "",
		`{"body":"\"org.matrix.msgid\":\"quoted\""}`:                                                "",
		`{"body":",\"org.matrix.msgid\":\"quoted\""}`:                                               "",
		`{"x,\"org.matrix.msgid":"another name"}`:                                                   "",
		`{"x":"org.matrix.msgid","y":"value"}`:                                                      "",
		`{"org.matrix.msgid":"` + strings.Repeat("x", 255) + `"}`:                                   strings.Repeat("x", 255),
		`{"org.matrix.msgid":"` + strings.Repeat("x", 256) + `"}`:                                   strings.Repeat("x", 255),
		`{"org.matrix.msgid":"` + strings.Repeat("x", 1<<20) + `"}`:                                 strings.Repeat("x", 255),
		`{"org.matrix.msgid":"x` + strings.Repeat("é", 200) + `"}`:                                  "x" + strings.Repeat("é", 127),
		`{"org.matrix.msgid":"` + strings.Repeat("é", 200) + `"}`:                                   strings.Repeat("é", 127),
		`{"org.matrix.msgid":"` + escaped + `"}`:                                                    strings.Repeat("é", 127),
		`{"org.matrix.msgid":"` + strings.Repeat(`\u0078`, 400) + `"}`:                              strings.Repeat("x", 255),
		`{"org.matrix.msgid":"12345` + strings.Repeat(`\u0078`, 400) + `"}`:                         "12345" + strings.Repeat("x", 250),
		`{"org.matrix.msgid":"` + strings.Repeat(`\"`, 1000) + `"}`:                                 strings.Repeat(`"`, 255),
		`{"ciphertext":"` + strings.Repeat("Ab+/", 20<<10) + `","org.matrix.msgid":"after 80 KiB"}`: "after 80 KiB",
	})
}

// wantMessageIDs sends the contents and checks which IDs are found in them.
func (f *fixture) wantMessageIDs(ids map[string]string) {
	f.Helper()
	var deliveries []storage.Delivery
	for content := range ids {
		deliveries = append(deliveries, delivery(content, alice))
	}
	f.commit(f.batch(deliveries))
	envelopes, err := f.store.Envelopes(f.ctx, alice, 0, len(ids)+1)
	f.must(err)
	if len(envelopes) != len(ids) {
		f.Fatalf("%d messages are listed, want %d", len(envelopes), len(ids))
	}
	for i, m := range sent(deliveries) {
		if want := envelopeOf(m, ids[string(m.Content)]); envelopes[i] != want {
			f.Errorf("of %.60s the envelope is %+v, want %+v", m.Content, envelopes[i], want)
		}
	}
}

// No content may keep an operator from the list of what waits.
func inspectOddContents(f *fixture) {
	ids := map[string]string{
		`{"a":` + strings.Repeat(`[`, 9000) + strings.Repeat(`]`, 9000) + `}`:     "",
		`{"a":` + strings.Repeat(`{"a":`, 9000) + `1` + strings.Repeat(`}`, 9001): "",
		`not JSON`:             "",
		`{"org.matrix.msgid":`: "",
		``:                     "",
		`{"half":"\ud83d","\udc00":1,"nul\u0000":"\u0000","org.matrix.msgid":"there"}`: "there",
		`{"org.matrix.msgid` + strings.Repeat(` `, 1<<16) + `":"name"}`:                "",
		`{"c":"` + strings.Repeat(`{,"`, 1) + `":` + strings.Repeat(`\"`, 1<<16):       "",
		strings.Repeat(`{"org.matrix.msgid"`, 1<<14):                                   "",
		strings.Repeat(`{,`+strings.Repeat(" ", 200), 1<<10):                           "",
	}
	for _, content := range oddContents {
		ids[content] = ""
	}
	f.wantMessageIDs(ids)
}

func inspectorRefuses(f *fixture) {
	for _, bad := range []string{"@a\x00b", "\xff\xfe", "\xed\xa0\x80"} {
		device := types.Device{UserID: alice.UserID, DeviceID: bad}
		_, err := f.store.Queues(f.ctx, storage.BySize, &storage.Queue{Device: device}, 1)
		f.wantRefused(err)
		_, err = f.store.Envelopes(f.ctx, device, 0, 1)
		f.wantRefused(err)
		_, err = f.store.Lines(f.ctx, bad, 1)
		f.wantRefused(err)
	}
}

func inspectorErrors(ctx context.Context, store storage.Inspector) map[string]error {
	errs := map[string]error{}
	_, errs["Totals"] = store.Totals(ctx)
	_, errs["Queues"] = store.Queues(ctx, storage.BySize, nil, 1)
	_, errs["CountQueues"] = store.CountQueues(ctx, storage.BySize, nil, 1)
	_, errs["Envelopes"] = store.Envelopes(ctx, alice, 0, 1)
	_, errs["Lines"] = store.Lines(ctx, "", 1)
	_, errs["Line"] = store.Line(ctx, remote)
	_, errs["Aside"] = store.Aside(ctx, remote, 0, 1)
	_, errs["Readmit"] = store.Readmit(ctx, remote, 0, moment(0))
	_, errs["Discard"] = store.Discard(ctx, remote, 0)
	return errs
}
