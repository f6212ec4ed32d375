package trace_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// fourSteps are the records of one message between clients of one server, with IDs as long as clients make them.
func fourSteps(i int) []trace.Record {
	r := trace.Record{
		Recipient: types.Device{UserID: fmt.Sprintf("@user%06d:matrix.example.org", i%1000), DeviceID: "ABCDEFGHIJ"},
		Sender:    "@somebody.else:matrix.example.org", Type: "m.room.encrypted", MessageID: fmt.Sprintf("4bb5f9ea-0000-4000-8000-%012d", i),
	}
	accepted, stored, handed := r, r, r
	accepted.Step, stored.Step, handed.Step = trace.Accepted, trace.Stored, trace.HandedOver
	accepted.TransactionID = fmt.Sprintf("m1700000000000.%d", i)
	stored.Position = types.Position(1_700_000_000_000_000 + i)
	handed.Position = stored.Position
	return []trace.Record{
		accepted, stored, handed,
		{Step: trace.Acknowledged, Recipient: r.Recipient, Position: stored.Position, Count: 1},
	}
}

// Four records, as each message has.
func BenchmarkRecord(b *testing.B) {
	ring := trace.New(trace.Options{Capacity: 50_000, Log: quiet()})
	records := fourSteps(1)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			ring.Record(records[0])
			ring.Record(records[1])
			ring.Record(records[2])
			ring.Record(records[3])
		}
	})
}

// A look through a full ring for one message, and what the ring takes.
func BenchmarkFind(b *testing.B) {
	for _, capacity := range []int{50_000, 1_000_000} {
		b.Run(fmt.Sprint(capacity), func(b *testing.B) {
			before := heap()
			ring := trace.New(trace.Options{Capacity: capacity, Log: quiet()})
			for i := range capacity / 2 {
				ring.Record(fourSteps(i)...)
			}
			mib := float64(heap()-before) / (1 << 20)
			query := trace.Query{MessageID: fourSteps(capacity/2 - capacity/10)[0].MessageID}
			for b.Loop() {
				if got := ring.Find(query); len(got.Records) != 4 {
					b.Fatalf("%d records are found", len(got.Records))
				}
			}
			b.ReportMetric(mib, "MiB")
			runtime.KeepAlive(ring)
		})
	}
}
