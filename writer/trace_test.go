package writer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/internal/tracetest"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

func startTraced(t *testing.T, open testdb.Open) (*fixture, *tracetest.Recorder) {
	t.Helper()
	told := &tracetest.Recorder{}
	return start(t, open, func(o *writer.Options) { o.Trace = told }), told
}

// position returns that of the only message of a device.
func (f *fixture) position(t *testing.T, device types.Device) types.Position {
	t.Helper()
	messages, err := f.store.Store.Messages(f.ctx, device, 0, 1<<62, 10, nil)
	if err != nil || len(messages) != 1 {
		t.Fatalf("%v has the messages %v, %v", device, messages, err)
	}
	return messages[0].Position
}

// The steps are told ahead of whoever acts on them: what is handed over was stored before.
func TestStoredIsTraced(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		told := &tracetest.Recorder{}
		var beforeWake, beforeOutgoing int
		f := start(t, open, func(o *writer.Options) {
			o.Trace = told
			o.Wake = func(types.Position, []writer.Wakeup) { beforeWake = len(told.Records()) }
			o.Outgoing = func([]storage.EDU) { beforeOutgoing = len(told.Records()) }
		})
		tablet := types.Device{UserID: bob.UserID, DeviceID: "TABLET"}
		lost := trace.Record{Step: trace.Dropped, Reason: trace.NotFederating, Recipient: types.Device{UserID: "@eve:there", DeviceID: "X"}}
		submission := message("x")
		part := &submission.Parts[0]
		part.Copies = append(part.Copies, storage.Copy{Device: tablet, Content: []byte(`{"secret":1}`)})
		part.EDUs = []storage.EDU{
			{Destination: "there", Origin: "test", MessageID: "edu1", Content: []byte(`{}`)},
			{Destination: "elsewhere", Origin: "test", MessageID: "edu2", Content: []byte(`{}`)},
		}
		part.Traced = writer.Traced{Origin: "origin", EDUID: "in", MessageIDs: []string{"for bob", ""}, Dropped: []trace.Record{lost}}
		if err := f.Submit(f.ctx, submission); err != nil {
			t.Fatal(err)
		}
		first := f.position(t, bob)
		if second := f.position(t, tablet); second != first+1 {
			t.Fatalf("the positions are %d and %d", first, second)
		}
		local := func(step trace.Step, device types.Device, id string, position types.Position) trace.Record {
			return trace.Record{
				Step: step, Recipient: device, Sender: "@alice:test", Type: "org.example.x", MessageID: id, EDUID: "in", Origin: "origin",
				Position: position,
			}
		}
		edu := func(step trace.Step, destination, id string) trace.Record {
			r := trace.Record{Step: step, Sender: "@alice:test", Type: "org.example.x", Destination: destination, EDUID: id}
			if step == trace.Stored {
				waiting, err := f.store.Waiting(f.ctx, destination, 0, 1<<62, 10, 1<<20)
				if err != nil || len(waiting) != 1 {
					t.Fatalf("for %s wait %v, %v", destination, waiting, err)
				}
				r.Position = waiting[0].Position
			}
			return r
		}
		stored := []trace.Record{
			local(trace.Stored, bob, "for bob", first), local(trace.Stored, tablet, "", first+1),
			edu(trace.Stored, "there", "edu1"), edu(trace.Stored, "elsewhere", "edu2"), lost,
		}
		told.Want(t, stored...)
		if beforeWake != len(stored) || beforeOutgoing != len(stored) {
			t.Errorf("of %d records %d were there before the wake-up and %d before the EDUs were announced", len(stored), beforeWake, beforeOutgoing)
		}
		if err := f.Submit(f.ctx, submission); err != nil {
			t.Fatal(err)
		}
		told.Want(t, local(trace.Repeated, bob, "for bob", 0), local(trace.Repeated, tablet, "", 0),
			edu(trace.Repeated, "there", "edu1"), edu(trace.Repeated, "elsewhere", "edu2"))
	})
}

func toBob(step trace.Step, name string, position types.Position) trace.Record {
	return trace.Record{Step: step, Recipient: bob, Sender: "@alice:test", Type: "org.example." + name, Position: position}
}

// stored returns the record of each of bob's messages, as far as they have the given types.
func (f *fixture) stored(t *testing.T, names ...string) (records []trace.Record) {
	t.Helper()
	messages, err := f.store.Store.Messages(f.ctx, bob, 0, 1<<62, 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if name := m.Type[len("org.example."):]; slices.Contains(names, name) {
			records = append(records, toBob(trace.Stored, name, m.Position))
		}
	}
	return records
}

// Of a request with several parts those that are stored before are told apart, and so are repetitions in one commit.
func TestRepeatedPartsAreTraced(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f, told := startTraced(t, open)
		if err := f.Submit(f.ctx, message("old")); err != nil {
			t.Fatal(err)
		}
		told.Want(t, f.stored(t, "old")...)

		release := f.holdNextCommit(t)
		done := make(chan error, 3)
		both := message("new")
		both.Parts = append(both.Parts, message("old").Parts...)
		for i, s := range []writer.Submission{both, message("new"), message("old")} {
			go func() { done <- f.Submit(f.ctx, s) }()
			f.waitQueued(t, i+1)
		}
		release()
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		var repeatedOld, repeatedNew, stored int
		for _, r := range told.Records() {
			switch r {
			case toBob(trace.Repeated, "old", 0):
				repeatedOld++
			case toBob(trace.Repeated, "new", 0):
				repeatedNew++
			case f.stored(t, "new")[0]:
				stored++
			}
		}
		if repeatedOld != 2 || repeatedNew != 1 || stored != 1 {
			t.Errorf("recorded are %+v", told.Records())
		}
	})
}

// However often a commit is tried, a message is told of once, with the position that it has; never if it is not stored.
func TestOnlyWhatIsStoredIsTraced(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f, told := startTraced(t, open)
		commits := 0
		f.store.OnCommit(func(ctx context.Context, batch storage.Batch, real faulty.Commit) error {
			switch commits++; commits {
			case 1:
				return faulty.ErrLost
			case 2:
				return errors.Join(real(ctx, batch), faulty.ErrLost)
			}
			return real(ctx, batch)
		})
		if err := f.Submit(f.ctx, message("tried")); err != nil {
			t.Fatal(err)
		}
		told.Want(t, f.stored(t, "tried")...)
		if commits != 2 {
			t.Fatalf("%d commits were tried", commits)
		}

		f.store.OnCommit(func(context.Context, storage.Batch, faulty.Commit) error { return errors.New("constraint violated") })
		if err := f.Submit(f.ctx, message("refused")); err == nil {
			t.Fatal("it was stored")
		}
		told.Want(t)
		f.store.OnCommit(nil)
		if err := f.Submit(f.ctx, message("after")); err != nil {
			t.Fatal(err)
		}
		told.Want(t, f.stored(t, "after")...)
	})
}

// What a commit was to store is not told of with a repetition that comes after it failed.
func TestFailedCommitLeavesNoTrace(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f, told := startTraced(t, open)
		if err := f.Submit(f.ctx, message("old")); err != nil {
			t.Fatal(err)
		}
		told.Want(t, f.stored(t, "old")...)
		for name, failure := range map[string]error{"refused": faulty.ErrRefused, "failed": faulty.ErrFails, "given up": faulty.ErrLost} {
			ctx, cancel := context.WithCancel(f.ctx)
			f.store.OnCommit(func(context.Context, storage.Batch, faulty.Commit) error { cancel(); return failure })
			if err := f.Submit(ctx, message(name)); err == nil {
				t.Fatal("it was stored")
			}
			if err := f.Submit(f.ctx, message("old")); err != nil {
				t.Fatal(err)
			}
			told.Want(t, toBob(trace.Repeated, "old", 0))
		}
	})
}

// Devices that do not exist are told of once, though the devices change while the message waits, and not at its repetition.
func TestUnknownDevicesAreTraced(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f, told := startTraced(t, open)
		host := &accounts{devices: map[string][]string{bob.UserID: {bob.DeviceID}}}
		directory, err := devices.NewDirectory(host)
		if err != nil {
			t.Fatal(err)
		}
		sender := writer.Sender{Directory: directory, Writer: f.Writer}
		target := func(userID, deviceID string) devices.Target {
			return devices.Target{Device: types.Device{UserID: userID, DeviceID: deviceID}, Content: []byte(`{"secret":1}`), MessageID: "id of " + deviceID}
		}
		m := writer.Message{
			Sender: "@alice:test", Type: "org.example.x",
			Targets: []devices.Target{
				target(bob.UserID, bob.DeviceID), target(bob.UserID, "GONE"), target("@nobody:test", "*"), target(bob.UserID, "X\x00Y"),
			},
			Transaction: message("x").Parts[0].Transaction, Remember: time.Hour,
			Traced: writer.Traced{Origin: "there", EDUID: "edu"},
		}
		callers := make([]trace.Record, 4)
		m.Traced.Dropped = callers[:0]
		release := f.holdNextCommit(t)
		sent := make(chan error, 1)
		go func() { sent <- sender.Send(f.ctx, m) }()
		f.waitQueued(t, 1)
		directory.Changed(bob.UserID)
		release()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		record := func(step trace.Step, reason trace.Reason, device types.Device) trace.Record {
			return trace.Record{
				Step: step, Reason: reason, Recipient: device, Sender: "@alice:test", Type: "org.example.x",
				MessageID: "id of " + device.DeviceID, EDUID: "edu", Origin: "there",
			}
		}
		stored := record(trace.Stored, "", bob)
		stored.Position = f.stored(t, "x")[0].Position
		told.Want(t, f.stored(t, "first")[0], stored,
			record(trace.Dropped, trace.UnknownDevice, types.Device{UserID: bob.UserID, DeviceID: "GONE"}),
			record(trace.Dropped, trace.UnknownDevice, types.Device{UserID: "@nobody:test", DeviceID: "*"}),
			record(trace.Dropped, trace.InvalidUser, types.Device{UserID: bob.UserID, DeviceID: "X\x00Y"}),
		)
		if err := sender.Send(f.ctx, m); err != nil {
			t.Fatal(err)
		}
		told.Want(t, record(trace.Repeated, "", bob))
		if slices.ContainsFunc(callers, func(r trace.Record) bool { return r != trace.Record{} }) {
			t.Errorf("what the caller has was written to: %+v", callers)
		}
	})
}

// A batch that was large leaves no memory behind, and the next one nothing of it.
func TestLargeAndSmallBatchesAreTraced(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f, told := startTraced(t, open)
		large := plain("large")
		for i := range 2000 {
			large.Parts[0].Copies = append(large.Parts[0].Copies,
				storage.Copy{Device: types.Device{UserID: "@many:test", DeviceID: fmt.Sprint(i)}, Content: []byte(`{}`)})
		}
		if err := f.Submit(f.ctx, large); err != nil {
			t.Fatal(err)
		}
		if got := told.Records(); len(got) != 2001 {
			t.Errorf("%d records, want 2001", len(got))
		}
		if err := f.Submit(f.ctx, plain("small")); err != nil {
			t.Fatal(err)
		}
		if got := told.Records(); len(got) != 2002 || got[2001] != f.stored(t, "small")[0] {
			t.Errorf("%d records, the last %+v", len(got), got[len(got)-1])
		}
	})
}

func TestAcknowledgedIsTraced(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f, _ := startTraced(t, open)
		for range 3 {
			if err := f.Submit(f.ctx, plain("x")); err != nil {
				t.Fatal(err)
			}
		}
		messages, err := f.store.Messages(f.ctx, bob, 0, 1<<62, 10, nil)
		if err != nil {
			t.Fatal(err)
		}
		told := &tracetest.Recorder{}
		acknowledge := func(through types.Position) {
			a := writer.NewAcknowledger(f.store, quiet())
			a.Trace = told
			a.Start(f.ctx)
			a.Acknowledge(bob, through)
			a.Acknowledge(types.Device{UserID: bob.UserID, DeviceID: "IDLE"}, through)
			a.Stop(f.ctx)
		}
		record := func(through types.Position, count int) trace.Record {
			return trace.Record{Step: trace.Acknowledged, Recipient: bob, Position: through, Count: count}
		}
		acknowledge(messages[1].Position)
		told.Want(t, record(messages[1].Position, 2))
		acknowledge(messages[1].Position)
		told.Want(t)
		acknowledge(f.Published())
		told.Want(t, record(f.Published(), 1))
	})
}
