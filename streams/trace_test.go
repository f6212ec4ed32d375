package streams_test

import (
	"context"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/internal/tracetest"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// What is in a response is told of, each time. What was read for one that failed is not.
func TestHandedOverIsTraced(t *testing.T) {
	r, q, _ := newReader(10, 20, 30)
	q.messages[0].Type, q.messages[0].Content = "m.type", []byte(`{"org.matrix.msgid":"one","body":"secret"}`)
	q.messages[1].Sender = "@ignored:x"
	told := &tracetest.Recorder{}
	r.Trace = told
	record := func(position types.Position) trace.Record {
		return trace.Record{Step: trace.HandedOver, Recipient: bob, Sender: "@alice:x", Position: position}
	}
	first := record(10)
	first.Type, first.MessageID = "m.type", "one"
	ignored := func(context.Context) ([]string, error) { return []string{"@ignored:x"}, nil }
	messages, _, err := r.Read(t.Context(), bob, 0, published, ignored)
	if err != nil {
		t.Fatal(err)
	}
	told.Want(t)
	for range 2 {
		r.HandedOver(bob, messages)
		told.Want(t, first, record(30))
	}
	r.HandedOver(bob, nil)
	told.Want(t)
}
