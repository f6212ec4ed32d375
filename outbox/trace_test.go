package outbox_test

import (
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
)

// What becomes of each EDU is told of, by the IDs and positions under which it was stored.
func TestWhatBecomesOfAnEDUIsTraced(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		all := []string{"a", "m", "z"}
		for _, id := range all {
			f.add(edu(there, id))
		}
		waiting, err := f.real.Waiting(f.ctx, there, 0, 1<<62, 10, 1<<20)
		f.must(err)
		record := func(step trace.Step, i int) trace.Record {
			return trace.Record{Step: step, Destination: there, EDUID: all[i], Position: waiting[i].Position}
		}
		f.remote.fails(answer(502))
		if err = f.send(); err == nil {
			f.Fatal("a destination that fails has taken it")
		}
		f.traced.Want(f)

		f.remote.fails(nil)
		f.remote.refuses(400, "m")
		f.must(f.send())
		f.traced.Want(f, record(trace.Sent, 0), record(trace.Refused, 1), record(trace.Sent, 2))

		for i, pause := range outbox.Pauses {
			f.wantRungAfter(pause)
			f.must(f.send())
			step := trace.Refused
			if i == len(outbox.Pauses)-1 {
				step = trace.SetAside
			}
			f.traced.Want(f, record(step, 1))
		}
	})
}

func TestRefusedThatArrivesIsTraced(t *testing.T) {
	each(t, func(f *fixture) {
		f.start()
		f.refuseOne()
		position := f.aside(there)[0].Position
		record := func(step trace.Step) trace.Record {
			return trace.Record{Step: step, Destination: there, EDUID: "m", Position: position}
		}
		f.traced.Want(f, record(trace.Refused))
		f.remote.fails(nil)
		f.wantRungAfter(outbox.Pauses[0])
		f.must(f.send())
		f.traced.Want(f, record(trace.Sent))
	})
}
