package trace_test

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var (
	phone  = types.Device{UserID: "@bob:here", DeviceID: "PHONE"}
	laptop = types.Device{UserID: "@bob:here", DeviceID: "LAPTOP"}
	began  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

const alice = "@alice:here"

func quiet() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// newRing returns a Ring whose clock goes on by a second each time that it is read.
func newRing(capacity int) *trace.Ring {
	now := began.Add(-time.Second)
	return trace.New(trace.Options{Capacity: capacity, Log: quiet(), Now: func() time.Time {
		now = now.Add(time.Second)
		return now
	}})
}

// full is a record in which nothing is empty.
func full() trace.Record {
	return trace.Record{
		Step: trace.Dropped, Reason: trace.Spoofed, Recipient: phone, Sender: alice, Type: "m.type", MessageID: "msgid", EDUID: "edu",
		TransactionID: "txn", Origin: "there", Destination: "elsewhere", Position: math.MaxInt64, Count: math.MaxInt,
	}
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	ring := newRing(10)
	ring.Record(full(), trace.Record{Sender: alice})
	ring.Record(trace.Record{Sender: alice, Position: math.MinInt64, Count: -1})
	want := []trace.Record{full(), {Sender: alice}, {Sender: alice, Position: math.MinInt64, Count: -1}}
	want[0].At, want[1].At, want[2].At = began.Add(time.Second), began.Add(time.Second), began.Add(2*time.Second)
	got := ring.Find(trace.Query{Sender: alice})
	if fmt.Sprint(got.Records) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", got.Records, want)
	}
	if got.More || got.Overwritten || !got.Since.Equal(began) || got.Capacity != 10 {
		t.Errorf("the result says %+v", got)
	}
}

func TestTheLastRecordsAreKept(t *testing.T) {
	for _, capacity := range []int{1, 7, 1000, 3000} {
		ring := newRing(capacity)
		for i := 1; i <= 3*capacity; i++ {
			ring.Record(trace.Record{Sender: alice, Position: types.Position(i)})
			kept := min(i, capacity)
			if i%(1+capacity/10) != 0 && i != capacity && i != capacity+1 {
				continue
			}
			got := ring.Find(trace.Query{Sender: alice, Limit: trace.MaxLimit})
			if len(got.Records) != kept || got.Records[0].Position != types.Position(i-kept+1) || got.Records[kept-1].Position != types.Position(i) {
				t.Fatalf("of %d records a ring of %d has %d, the first %+v", i, capacity, len(got.Records), got.Records[0])
			}
			since := began
			if i > capacity {
				since = got.Records[0].At
			}
			if got.Overwritten != (i > capacity) || !got.Since.Equal(since) {
				t.Fatalf("after %d records a ring of %d says %t, %s; want %s", i, capacity, got.Overwritten, got.Since, since)
			}
			if status := ring.Find(trace.Query{}); len(status.Records) != 0 || status.Overwritten != got.Overwritten || !status.Since.Equal(since) {
				t.Fatalf("without a query it says %+v", status)
			}
		}
	}
}

func TestWithoutCapacityNothingIsKept(t *testing.T) {
	ring := newRing(0)
	ring.Record(full())
	got := ring.Find(trace.Query{Sender: alice})
	if len(got.Records) != 0 || got.Capacity != 0 || got.Overwritten {
		t.Errorf("the result is %+v", got)
	}
}

func TestTextsAreCut(t *testing.T) {
	ring := newRing(10)
	for _, text := range []string{strings.Repeat("x", 256), strings.Repeat("x", 254) + "é", strings.Repeat("\U0001F600", 100), strings.Repeat("\x80", 300)} {
		r := trace.Record{
			Step: trace.Step(text), Reason: trace.Reason(text), Recipient: types.Device{UserID: text, DeviceID: text}, Sender: text, Type: text,
			MessageID: text, EDUID: text, TransactionID: text, Origin: text, Destination: text,
		}
		ring.Record(r)
		for name, q := range map[string]trace.Query{
			"sender": {Sender: text}, "user": {Device: types.Device{UserID: text}}, "device": {Device: r.Recipient}, "msgid": {MessageID: text}, "edu": {EDUID: text},
		} {
			got := ring.Find(q)
			if len(got.Records) != 1 {
				t.Fatalf("%d records are found by the %s", len(got.Records), name)
			}
			cut := got.Records[0]
			for i, part := range []string{
				string(cut.Step), string(cut.Reason), cut.Recipient.UserID, cut.Recipient.DeviceID, cut.Sender, cut.Type,
				cut.MessageID, cut.EDUID, cut.TransactionID, cut.Origin, cut.Destination,
			} {
				if len(part) > 255 || len(part) <= 255-utf8.UTFMax-1 || !strings.HasPrefix(text, part) || utf8.ValidString(text) && !utf8.ValidString(part) {
					t.Errorf("text %d, %d times %q, became one of %d bytes", i, len(text), text[:1], len(part))
				}
			}
		}
	}
}

// Whoever fills every text to its bound gets no more memory than others, and loses what is old.
func TestMemoryIsBounded(t *testing.T) {
	const capacity = 5000
	long := func(i int) string { return strings.Repeat(fmt.Sprint(i%10), 300) }
	for name, record := range map[string]func(i int) trace.Record{
		"short": func(int) trace.Record { return trace.Record{Sender: alice} },
		"long": func(i int) trace.Record {
			return trace.Record{
				Recipient: types.Device{UserID: long(i), DeviceID: long(i)}, Sender: alice, Type: long(i),
				MessageID: long(i), EDUID: long(i), TransactionID: long(i), Origin: long(i), Destination: long(i),
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := heap()
			ring := newRing(capacity)
			for i := range 5 * capacity {
				ring.Record(record(i))
			}
			const most = capacity*256 + 128<<10
			if used := heap() - before; used > most+64<<10 {
				t.Errorf("%d records take %d bytes, want %d at the most", capacity, used, most)
			}
			got := ring.Find(trace.Query{Sender: alice, Limit: trace.MaxLimit})
			if want := 500; len(got.Records) < want || !got.Overwritten || !got.Since.After(began) {
				t.Errorf("%d records are left, want %d at the least; %t, %s", len(got.Records), want, got.Overwritten, got.Since)
			}
			runtime.KeepAlive(ring)
		})
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// Blocks of 64 KiB apart, which come once in some 300 records.
func TestRecordingAllocatesNothing(t *testing.T) {
	ring := trace.New(trace.Options{Capacity: 1000, Log: quiet()})
	records := []trace.Record{full(), full(), full(), full()}
	if n := testing.AllocsPerRun(10_000, func() { ring.Record(records...) }); n > 0.1 {
		t.Errorf("each call allocates %g times", n)
	}
}

func TestFindBesideRecord(t *testing.T) {
	ring := trace.New(trace.Options{Capacity: 2000, Log: quiet()})
	const recorders, each = 4, 3000
	var group sync.WaitGroup
	for range recorders {
		group.Go(func() {
			for i := range each {
				ring.Record(trace.Record{Step: trace.Stored, Sender: alice, Recipient: phone, Position: types.Position(2*i + 1)},
					trace.Record{Step: trace.Stored, Sender: alice, Recipient: laptop, Position: types.Position(2*i + 2)})
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		group.Wait()
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got := ring.Find(trace.Query{Sender: alice, Limit: trace.MaxLimit})
		if len(got.Records) > 2000 {
			t.Fatalf("a ring of 2000 has %d", len(got.Records))
		}
		for i, r := range got.Records {
			device := phone
			if r.Position%2 == 0 {
				device = laptop
			}
			if r.Recipient != device || r.Sender != alice || i > 0 && r.At.Before(got.Records[i-1].At) {
				t.Fatalf("record %d is %+v, after %+v", i, r, got.Records[max(i-1, 0)])
			}
		}
	}
	if got := ring.Find(trace.Query{Sender: alice, Limit: trace.MaxLimit}); len(got.Records) != 2000 {
		t.Errorf("%d records are left", len(got.Records))
	}
}

func TestDebugLogHasEachRecord(t *testing.T) {
	for _, capacity := range []int{0, 10} {
		log, hook := test.NewNullLogger()
		ring := trace.New(trace.Options{Capacity: capacity, Log: logrus.NewEntry(log)})
		ring.Record(full())
		if lines := hook.AllEntries(); len(lines) != 0 {
			t.Errorf("%d lines are logged at the level of info", len(lines))
		}
		log.SetLevel(logrus.DebugLevel)
		long := trace.Record{Step: trace.Stored, Sender: strings.Repeat("s", 300)}
		ring.Record(full(), long)
		want := []logrus.Fields{
			{
				"step": "dropped", "reason": "spoofed", "user_id": "@bob:here", "device_id": "PHONE", "sender": alice, "type": "m.type",
				"message_id": "msgid", "edu_id": "edu", "transaction_id": "txn", "origin": "there", "destination": "elsewhere",
				"position": int64(math.MaxInt64), "count": math.MaxInt,
			},
			{"step": "stored", "sender": strings.Repeat("s", 255)},
		}
		lines := hook.AllEntries()
		if len(lines) != len(want) {
			t.Fatalf("%d lines are logged, want %d", len(lines), len(want))
		}
		for i, line := range lines {
			if line.Level != logrus.DebugLevel || fmt.Sprint(line.Data) != fmt.Sprint(want[i]) {
				t.Errorf("logged is %s %v\nwant %v", line.Level, line.Data, want[i])
			}
		}
	}
}

func TestTee(t *testing.T) {
	if r := trace.Tee(nil, nil); r != nil {
		t.Errorf("of nobody there is %v", r)
	}
	one, two := newRing(10), newRing(10)
	if r := trace.Tee(nil, one); r != trace.Recorder(one) {
		t.Errorf("of one there is %v", r)
	}
	trace.Tee(one, nil, two).Record(full(), full())
	for _, ring := range []*trace.Ring{one, two} {
		if got := ring.Find(trace.Query{Sender: alice}); len(got.Records) != 2 {
			t.Errorf("%d records have come, want 2", len(got.Records))
		}
	}
}

func TestMessageID(t *testing.T) {
	for content, want := range map[string]string{
		`{"org.matrix.msgid":"abc"}`:                                       "abc",
		`{"ciphertext":{"a":"b"}, "org.matrix.msgid" : "a\"b"}`:            `a"b`,
		`{"org.matrix.msgid":"\u00e9\ud83d\ude00"}`:                        "é\U0001F600",
		`{"org.matrix.msgid":"` + strings.Repeat("é", 200) + `"}`:          strings.Repeat("é", 127),
		`{"org.matrix.msgid":""}`:                                          "",
		`{}`:                                                               "",
		`{"a":{"org.matrix.msgid":"inside"}}`:                              "",
		`{"a":["org.matrix.msgid"]}`:                                       "",
		`{"a":"\"org.matrix.msgid\":\"text\""}`:                            "",
		`{"org.matrix.msgid":7}`:                                           "",
		`{"org.matrix.msgid":null}`:                                        "",
		`{"org.matrix.msgid":{"secret":"x"}}`:                              "",
		`{"org.matrix.msgid":["secret"]}`:                                  "",
		`{"org":{"matrix":{"msgid":"nested"}},"x":"\"org.matrix.msgid\""}`: "",
	} {
		if got := trace.MessageID([]byte(content)); got != want {
			t.Errorf("%s has %q, want %q", content, got, want)
		}
	}
}
