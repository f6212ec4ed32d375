package host

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"
)

// unacknowledgedAtMost bounds the span of the stream in which entries are looked for that were delivered
// and not acknowledged. It is leftoversAtOnce at most, and after a crash of NATS what came within the 100
// milliseconds that NATS forgets.
const unacknowledgedAtMost = 1 << 14

// redeliver makes NATS deliver again, before anything else and in the order of the stream, what went to a process or over a
// connection that ended before it was acknowledged. By itself NATS does so after 30 seconds, and
// delivers what is newer in the meantime.
func (l *leftovers) redeliver(js nats.JetStreamContext, info *nats.ConsumerInfo) error {
	if info.NumAckPending == 0 {
		return nil
	}
	stream, err := js.StreamInfo(l.stream, &nats.StreamInfoRequest{DeletedDetails: true})
	if err != nil {
		return err
	}
	first, last := info.AckFloor.Stream+1, min(info.Delivered.Stream, stream.State.LastSeq)
	if first > last || last-first >= unacknowledgedAtMost {
		return nil
	}
	deleted := make(map[uint64]bool, len(stream.State.Deleted))
	for _, sequence := range stream.State.Deleted {
		deleted[sequence] = true
	}
	for sequence := first; sequence <= last && err == nil; sequence++ {
		entry := nats.Msg{Sub: l.subscription, Reply: fmt.Sprintf(
			"$JS.ACK.%s.%s.1.%d.%d.0.0", l.stream, l.durable, sequence, info.Delivered.Consumer,
		)}
		// Which ones were not acknowledged, only NATS knows: for the others this has no effect.
		answer := entry.Nak
		if sequence < stream.State.FirstSeq || deleted[sequence] {
			// NATS was killed and has forgotten the acknowledgement. It would wait for the next pull
			// request, and for each of these again, before it delivers anything.
			answer = entry.Ack
		}
		if sequence < last {
			err = answer()
		} else { // NATS takes them in their order
			err = answer(nats.AckWait(answerTimeout))
		}
	}
	if err != nil {
		return err
	}
	return l.sortRedeliveries(js)
}

// sortRedeliveries takes what NATS delivers again and hands it back in the order of the stream. An entry that NATS was
// about to deliver over a connection that ended is the first of them, even if it had delivered others over it before.
func (l *leftovers) sortRedeliveries(js nats.JetStreamContext) error {
	info, err := js.ConsumerInfo(l.stream, l.durable)
	if err != nil {
		return err
	}
	var again []redelivery
	for len(again) < info.NumAckPending && err == nil {
		var some []redelivery
		some, err = l.takeRedeliveries(min(info.NumAckPending-len(again), leftoversAtOnce))
		again = append(again, some...)
	}
	slices.SortFunc(again, func(a, b redelivery) int { return cmp.Compare(a.sequence, b.sequence) })
	for i := range again {
		var options []nats.AckOpt
		if i == len(again)-1 {
			options = append(options, nats.AckWait(answerTimeout))
		}
		if nakErr := again[i].msg.Nak(options...); nakErr != nil {
			return nakErr
		}
	}
	return err
}

type redelivery struct {
	sequence uint64 // in the stream
	msg      *nats.Msg
}

// takeRedeliveries takes n entries without their data. It returns errDeliveryMissed with the others where some of them went elsewhere:
// the next fetch notices that too, and begins anew.
func (l *leftovers) takeRedeliveries(n int) (taken []redelivery, err error) {
	batch, err := l.subscription.FetchBatch(n, nats.MaxWait(answerTimeout))
	if err != nil {
		return nil, err
	}
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return taken, err
		}
		msg.Data = nil
		taken = append(taken, redelivery{meta.Sequence.Stream, msg})
		if meta.Sequence.Consumer != l.next {
			return taken, errDeliveryMissed
		}
		l.next++
	}
	if len(taken) < n {
		return taken, errDeliveryMissed
	}
	return taken, nil
}
