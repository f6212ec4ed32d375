package streams_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// Every device that follows its tokens gets each message once and in order, while it is written, read, forgotten and
// deleted at once.
func TestEachMessageComesOnceAndInOrder(t *testing.T) {
	const senders, receivers, each = 4, 6, 40
	for _, size := range []int64{2 << 10, 1 << 24} {
		t.Run(fmt.Sprintf("with %d bytes", size), func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, open testdb.Open) {
				s := newStress(t, open, size)
				var sending, receiving, disturbing sync.WaitGroup
				all := make([]types.Device, receivers)
				for i := range all {
					all[i] = types.Device{UserID: fmt.Sprintf("@%d:x", i), DeviceID: "PHONE"}
					receiving.Go(func() { s.receive(all[i], senders, each, i%2 == 0) })
				}
				done := make(chan struct{})
				disturbing.Go(func() { s.disturb(done) })
				for i := range senders {
					sending.Go(func() { s.send(fmt.Sprintf("@s%d:x", i), each, append(all, purged)) })
				}
				sending.Wait()
				receiving.Wait()
				close(done)
				disturbing.Wait()
				if s.fromMemory.Load() == 0 || s.asked.Load() == 0 {
					t.Errorf("%d reads were answered from memory, %d by the database", s.fromMemory.Load(), s.asked.Load())
				}
			})
		})
	}
}

// purged is a device of which everything is deleted again and again.
var purged = types.Device{UserID: "@purged:x", DeviceID: "PHONE"}

// stress is all that a queue goes through.
type stress struct {
	*testing.T
	ctx           context.Context
	store         *streams.Cache
	writer        *writer.Writer
	reader        *streams.Reader
	committed     *sync.Cond // the position moved
	fromMemory    atomic.Int64
	asked         atomic.Int64
	acknowledging *writer.Acknowledger
}

func newStress(t *testing.T, open testdb.Open, size int64) *stress {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	s := &stress{T: t, ctx: ctx, committed: sync.NewCond(&sync.Mutex{})}
	var err error
	if s.store, err = streams.NewCache(open(t)); err != nil {
		t.Fatal(err)
	}
	s.store.Bytes, s.store.QueueBytes = size, size/4
	s.store.Observe = func(hit bool) {
		if hit {
			s.fromMemory.Add(1)
		} else {
			s.asked.Add(1)
		}
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	quiet := logrus.NewEntry(log)
	s.writer = writer.New(writer.Options{
		Store: s.store, Log: quiet, Committed: s.store.Committed, Wake: func(types.Position, []writer.Wakeup) { s.wake() },
	})
	s.acknowledging = writer.NewAcknowledger(s.store, quiet)
	if err = s.store.Migrate(ctx); err == nil {
		err = s.writer.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.acknowledging.Start(ctx)
	s.reader = &streams.Reader{Store: s.store, Acknowledgements: s.acknowledging, Published: s.writer.Published, Limit: 10}
	stopWaiting := context.AfterFunc(ctx, s.wake)
	t.Cleanup(func() {
		stopWaiting()
		s.acknowledging.Stop(context.Background())
		_ = s.writer.Stop(context.Background())
		cancel()
	})
	return s
}

func (s *stress) wake() {
	s.committed.L.Lock()
	defer s.committed.L.Unlock()
	s.committed.Broadcast()
}

// waitBeyond waits until there is a position beyond the one given.
func (s *stress) waitBeyond(position types.Position) {
	s.committed.L.Lock()
	defer s.committed.L.Unlock()
	for s.writer.Published() <= position && s.ctx.Err() == nil {
		s.committed.Wait()
	}
}

type numbered struct {
	N int `json:"n"`
}

func (s *stress) send(sender string, messages int, to []types.Device) {
	for n := range messages {
		content, _ := json.Marshal(numbered{n})
		part := writer.Part{Sender: sender, Type: "m.type"}
		for _, device := range to {
			part.Copies = append(part.Copies, storage.Copy{Device: device, Content: content})
		}
		if err := s.writer.Submit(s.ctx, writer.Submission{Parts: []writer.Part{part}}); err != nil {
			s.Error(err)
			return
		}
	}
}

// receive follows the tokens until everything has come. With acknowledges what was read is deleted behind it.
func (s *stress) receive(device types.Device, senders, each int, acknowledges bool) {
	next := make(map[string]int)
	for since, left := types.Position(0), senders*each; left > 0; {
		if acknowledges {
			s.reader.Acknowledge(device, since)
		}
		messages, to, err := s.reader.Read(s.ctx, device, since, s.reader.Published(), nobody)
		if err != nil {
			s.Errorf("%d messages did not come: %v", left, err)
			return
		}
		for _, m := range messages {
			var got numbered
			if err := json.Unmarshal(m.Content, &got); err != nil || got.N != next[m.Sender] || m.Position <= since || m.Position > to {
				s.Errorf("%s %s at %d, want %d after %d, %v", m.Sender, m.Content, m.Position, next[m.Sender], since, err)
				return
			}
			next[m.Sender]++
			left--
		}
		if since = to; len(messages) == 0 {
			s.waitBeyond(since)
			if s.ctx.Err() != nil {
				s.Errorf("%d messages did not come", left)
				return
			}
		}
	}
}

// disturb deletes the queue of a device that is read all the while. What was there when a deletion began is gone.
func (s *stress) disturb(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		if _, _, err := s.reader.Read(s.ctx, purged, 0, s.reader.Published(), nobody); err != nil {
			s.Error(err)
			return
		}
		before := s.reader.Published()
		if _, err := s.store.Purge(s.ctx, purged, math.MaxInt64); err != nil {
			s.Error(err)
			return
		}
		messages, _, err := s.reader.Read(s.ctx, purged, 0, s.reader.Published(), nobody)
		if err != nil || len(messages) > 0 && messages[0].Position <= before {
			s.Errorf("of what was there at %d is left: %v, %v", before, positions(messages), err)
			return
		}
	}
}
