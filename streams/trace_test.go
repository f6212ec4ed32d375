package streams_test

import (
	"context"
	"errors"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/internal/tracetest"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// What comes back is told of, each time; what does not is not.
func TestHandedOverIsTraced(t *testing.T) {
	r, q, a := newReader(10, 20, 30, 40)
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
	for range 2 {
		wantRead(t, r, 0, published, 40, ignored, 10, 30, 40)
		told.Want(t, first, record(30), record(40))
	}
	a.Acknowledge(bob, 30)
	wantRead(t, r, 0, published, published, ignored, 40)
	told.Want(t, record(40))
	wantRead(t, r, 40, published, published, ignored)
	told.Want(t)

	q.fails = func(int) error { return errors.New("no answer") }
	if _, _, err := r.Read(t.Context(), bob, 0, published, ignored); err == nil {
		t.Error("the failure is hidden")
	}
	q.fails = nil
	failing := func(context.Context) ([]string, error) { return nil, errors.New("no answer") }
	if _, _, err := r.Read(t.Context(), bob, 0, published, failing); err == nil {
		t.Error("the failure is hidden")
	}
	told.Want(t)
}
