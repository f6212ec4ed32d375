package storagetest

import (
	"fmt"
	"strings"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func messageTests() map[string]func(*fixture) {
	return map[string]func(*fixture){
		"absence is no error":                messagesAbsent,
		"order and limit":                    messagesOrder,
		"after exclusive, through inclusive": messagesRange,
		"content byte for byte":              messagesContent,
		"except":                             messagesExcept,
		"except is not a pattern":            messagesExceptOdd,
		"every device has its own queue":     messagesDevices,
		"reopened":                           messagesReopened,
	}
}

func messagesAbsent(f *fixture) {
	queued := f.send(alice, 2)
	first, last := queued[0].Position, queued[1].Position
	for name, read := range map[string]struct {
		device         types.Device
		after, through types.Position
		limit          int
	}{
		"unknown user":       {types.Device{UserID: "@nobody:example.org", DeviceID: alice.DeviceID}, 0, everLater, 10},
		"unknown device":     {types.Device{UserID: alice.UserID, DeviceID: "NONE"}, 0, everLater, 10},
		"user in other case": {types.Device{UserID: "@ALICE:example.org", DeviceID: alice.DeviceID}, 0, everLater, 10},
		"empty range":        {alice, first, first, 10},
		"range backwards":    {alice, last, first, 10},
		"range ahead":        {alice, last, everLater, 10},
		"range before":       {alice, 0, first - 1, 10},
		"no limit left":      {alice, 0, everLater, 0},
	} {
		messages, err := f.store.Messages(f.ctx, read.device, read.after, read.through, read.limit, nil)
		if err != nil || len(messages) != 0 {
			f.Errorf("%s: got %d messages and the error %v", name, len(messages), err)
		}
	}
}

func messagesOrder(f *fixture) {
	// The copies go in against the order, in one batch and over several.
	var want []types.Message
	for range 3 {
		batch := f.batch([]storage.Delivery{delivery(`{"a":1}`, alice), delivery(`{"a":2}`, alice), delivery(`{"a":3}`, alice)})
		want = append(want, sent(batch.Deliveries)...)
		batch.Deliveries[0], batch.Deliveries[2] = batch.Deliveries[2], batch.Deliveries[0]
		f.commit(batch)
	}
	f.wantMessages(alice, want)
	for limit := 1; limit <= len(want)+1; limit++ {
		got, err := f.store.Messages(f.ctx, alice, 0, everLater, limit, nil)
		f.must(err)
		f.same(got, want[:min(limit, len(want))])
	}
}

func messagesRange(f *fixture) {
	queued := f.send(alice, 5)
	for from := range queued {
		for to := from; to < len(queued); to++ {
			got, err := f.store.Messages(f.ctx, alice, queued[from].Position, queued[to].Position, 10, nil)
			f.must(err)
			f.same(got, queued[from+1:to+1])
		}
	}
}

// oddContents are JSON objects that some step on the way might change.
var oddContents = []string{
	`{}`,
	`{"z":1,"a":2,"m":{"y":1,"b":2}}`,
	`{"n":123456789012345678901234567890,"f":1.0,"e":1e400,"m":-0,"d":1.10}`,
	`{"escapes":"\u0000\u001f\ud83d\ude00\/\"\\\b\n","a\u0062":1}`,
	`{ "space" :  1 , "tab":	[ ] }`,
	"{\"line\": 1,\r\n\"separator\": \"\u2028\u2029\"}",
	`{"unicode":"žluťoučký 马 😀 é é � ＇"}`,
	`{"same":1,"same":2}`,
	`{"sql":"'); DROP TABLE todevice_messages; --","array":"{\"a\",NULL}","percent":"%s $1 ?1"}`,
	`{"html":"<b>&amp;</b>"}`,
	`{"ciphertext":"` + strings.Repeat("Ab+/", 16<<10) + `"}`,
}

func messagesContent(f *fixture) {
	var deliveries []storage.Delivery
	for _, content := range oddContents {
		deliveries = append(deliveries, delivery(content, alice))
	}
	deliveries = append(deliveries, storage.Delivery{
		Sender: "@o'hara{\"},NULL\\:example.org",
		Type:   "org.example.\U0001F600 \"quoted\" \\ {},",
		Copies: []storage.Copy{{Device: alice, Content: []byte(`{"a":1}`)}},
	})
	f.commit(f.batch(deliveries))
	f.wantMessages(alice, sent(deliveries))
}

func messagesExcept(f *fixture) {
	senders := []string{"@a:x", "@b:x", "@a:x", "@c:x", "@b:x", "@c:x"}
	var deliveries []storage.Delivery
	for i, from := range senders {
		d := delivery(fmt.Sprintf(`{"n":%d}`, i), alice)
		d.Sender = from
		deliveries = append(deliveries, d)
	}
	f.commit(f.batch(deliveries))
	all := sent(deliveries)
	for _, c := range []struct {
		except []string
		limit  int
		want   []types.Message
	}{
		{nil, 10, all},
		{[]string{}, 10, all},
		{[]string{"@z:x"}, 10, all},
		{[]string{"@a:x"}, 10, []types.Message{all[1], all[3], all[4], all[5]}},
		{[]string{"@a:x"}, 2, []types.Message{all[1], all[3]}},
		{[]string{"@a:x", "@b:x"}, 10, []types.Message{all[3], all[5]}},
		{[]string{"@a:x", "@b:x", "@c:x", "@a:x"}, 10, nil},
	} {
		got, err := f.store.Messages(f.ctx, alice, 0, everLater, c.limit, c.except)
		f.must(err)
		f.same(got, c.want)
	}
}

func messagesExceptOdd(f *fixture) {
	queued := f.send(alice, 2)
	for _, odd := range []string{"%", "@carol%", "@carol:example.or_", "@CAROL:example.org", "", "NULL", `"`, "{}", "nul\x00", "\xff"} {
		got, err := f.store.Messages(f.ctx, alice, 0, everLater, 10, []string{odd})
		f.must(err)
		f.same(got, queued)
		got, err = f.store.Messages(f.ctx, alice, 0, everLater, 10, []string{odd, sender})
		f.must(err)
		f.same(got, nil)
	}
}

func messagesDevices(f *fixture) {
	// The same letters, divided differently.
	devices := []types.Device{{UserID: "@ab:x", DeviceID: "C"}, {UserID: "@ab:x", DeviceID: "D"}, {UserID: "@a:x", DeviceID: "C"}, {UserID: "@a:x", DeviceID: ""}}
	for i := range devices {
		d := delivery("", devices...)
		for j := range d.Copies {
			d.Copies[j].Content = fmt.Appendf(nil, `{"device":%d,"round":%d}`, j, i)
		}
		f.commit(f.batch([]storage.Delivery{d}))
	}
	for j, device := range devices {
		got := f.messages(device)
		if len(got) != len(devices) {
			f.Fatalf("device %d has %d messages, want %d", j, len(got), len(devices))
		}
		for i, m := range got {
			if want := fmt.Sprintf(`{"device":%d,"round":%d}`, j, i); string(m.Content) != want {
				f.Errorf("device %d got %s, want %s", j, m.Content, want)
			}
		}
	}
}

func messagesReopened(f *fixture) {
	queued := f.send(alice, 3)
	key := types.TransactionKey{Device: bob, EventType: eventType, TransactionID: "kept"}
	f.commit(f.batch(nil, transaction(key, 1)))
	again := f.open(f)
	f.must(again.Migrate(f.ctx))
	state, err := again.State(f.ctx)
	f.must(err)
	if want := (storage.State{Writer: f.writer, Last: f.last}); state != want {
		f.Errorf("the state is %+v, want %+v", state, want)
	}
	got, err := again.Messages(f.ctx, alice, 0, everLater, 10, nil)
	f.must(err)
	f.same(got, queued)
	stored, err := again.Stored(f.ctx, []types.TransactionKey{key})
	f.must(err)
	if _, ok := stored[key]; !ok {
		f.Error("the transaction is gone")
	}
}
