package consumers_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// accounts are the devices of the host's users.
type accounts struct {
	mu      sync.Mutex
	devices map[string][]string
}

func (a *accounts) UserDevices(_ context.Context, userID string) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.devices[userID]), nil
}

func (a *accounts) DeviceOwners(_ context.Context, deviceIDs []string) (map[string]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	owners := make(map[string]string)
	for userID, ids := range a.devices {
		for _, id := range ids {
			if slices.Contains(deviceIDs, id) {
				owners[id] = userID
			}
		}
	}
	return owners, nil
}

// server is a Federation on a real database whose faults the test chooses.
type server struct {
	*federation
	store     *faulty.Store
	directory *devices.Directory
	writer    *writer.Writer
	accounts  *accounts
	ctx       context.Context
}

func startServer(t *testing.T, open testdb.Open) *server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	log := logrus.New()
	log.SetOutput(io.Discard)
	s := &server{
		store:    &faulty.Store{Store: open(t)},
		accounts: &accounts{devices: map[string][]string{"@bob:here": {"PHONE", "LAPTOP"}, "@dan:here": {"D"}}},
		ctx:      ctx,
	}
	if err := s.store.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.directory, err = devices.NewDirectory(s.accounts); err != nil {
		t.Fatal(err)
	}
	s.writer = writer.New(writer.Options{
		Store: s.store, Log: logrus.NewEntry(log), Wake: func(types.Position, []writer.Wakeup) {},
	})
	if err = s.writer.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(t) })
	s.federation = newFederation(&writer.Sender{Directory: s.directory, Writer: s.writer})
	return s
}

func (s *server) stop(t *testing.T) {
	t.Helper()
	if err := s.writer.Stop(s.ctx); err != nil {
		t.Error(err)
	}
}

func (s *server) receive(t *testing.T, edus ...json.RawMessage) {
	t.Helper()
	if err := s.Receive(s.ctx, origin, edus); err != nil {
		t.Fatal(err)
	}
}

// wantQueue wants the contents in a device's queue, in their order.
func (s *server) wantQueue(t *testing.T, userID, deviceID string, want ...string) {
	t.Helper()
	messages, err := s.store.Messages(s.ctx, types.Device{UserID: userID, DeviceID: deviceID}, 0, 1<<62, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range messages {
		got = append(got, string(m.Content))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the queue of %s of %s has %v, want %v", deviceID, userID, got, want)
	}
}

func TestTransactionIsStoredInOrderByOneCommit(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		s.receive(t,
			edu("1", `{"@bob:here":{"PHONE":{"n":1},"GONE":{"n":1}},"@nobody:here":{"PHONE":{"n":1}},"@eve:elsewhere":{"PHONE":{"n":1}}}`),
			edu("2", `{"@bob:here":{"*":{"n":2}},"@dan:here":{"D":{"n":2},"PHONE":{"n":2}}}`),
			edu("3", `{"@bob:here":{"PHONE":{ "n" : 3 },"*":{"n":"3, others"}}}`),
		)
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":2}`, `{ "n" : 3 }`)
		s.wantQueue(t, "@bob:here", "LAPTOP", `{"n":2}`, `{"n":"3, others"}`)
		s.wantQueue(t, "@dan:here", "D", `{"n":2}`)
		s.wantQueue(t, "@dan:here", "PHONE")
		s.wantQueue(t, "@bob:here", "GONE")
		s.wantQueue(t, "@bob:here", "*")
		s.wantQueue(t, "@nobody:here", "PHONE")
		s.wantQueue(t, "@eve:elsewhere", "PHONE")
		committed := s.store.Committed()
		if len(committed) != 1 || len(committed[0].Transactions) != 3 {
			t.Fatalf("committed was %+v", committed)
		}
		for _, record := range committed[0].Transactions {
			if left := time.Until(record.ExpiresAt); left < s.Remember-time.Hour || left > s.Remember {
				t.Errorf("%+v is remembered for %s", record.TransactionKey, left)
			}
		}
	})
}

func TestEDUIsAppliedOnce(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		bob := func(content string) string { return `{"@bob:here":{"PHONE":` + content + `}}` }
		s := startServer(t, open)
		s.receive(t, edu("1", bob(`{"n":1}`)), edu("1", bob(`{"n":"1 again"}`)), edu("2", bob(`{"n":2}`)))
		s.receive(t, edu("1", bob(`{"n":1}`)), edu("3", bob(`{"n":3}`)), edu("2", bob(`{"n":2}`)))
		s.stop(t)
		s = startServer(t, open)
		s.receive(t, edu("3", bob(`{"n":3}`)), edu("2", bob(`{"n":2}`)), edu("4", bob(`{"n":4}`)))
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":2}`, `{"n":3}`, `{"n":4}`)

		other := json.RawMessage(strings.ReplaceAll(string(edu("1", bob(`{"n":"other"}`))), origin, "other"))
		if err := s.Receive(s.ctx, "other", []json.RawMessage{other}); err != nil {
			t.Fatal(err)
		}
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":2}`, `{"n":3}`, `{"n":4}`, `{"n":"other"}`)
	})
}

func TestSameTransactionManyTimesAtOnce(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		s.Observe = nil // which the goroutines would share
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				edus := []json.RawMessage{edu("1", `{"@bob:here":{"PHONE":{"n":1}}}`), edu("2", `{"@bob:here":{"PHONE":{"n":2}}}`)}
				if err := s.Receive(s.ctx, origin, edus); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":2}`)
	})
}

// A device that is made after a message came for its ID must not get the message when it comes again.
func TestEDUWithoutRecipientsIsRemembered(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		later := edu("1", `{"@bob:here":{"LATER":{"n":1}}}`)
		s.receive(t, later, edu("2", `{}`))
		s.directory.Changed("@bob:here")
		s.accounts.mu.Lock()
		s.accounts.devices["@bob:here"] = []string{"LATER"}
		s.accounts.mu.Unlock()
		s.directory.Changed("@bob:here")
		s.receive(t, later, edu("2", `{"@bob:here":{"LATER":{"n":2}}}`), edu("3", `{"@bob:here":{"LATER":{"n":3}}}`))
		s.wantQueue(t, "@bob:here", "LATER", `{"n":3}`)
	})
}

func TestTransactionWhileTheDatabaseIsAway(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		tried := make(chan struct{}, 1)
		s.store.OnCommit(func(context.Context, storage.Batch, faulty.Commit) error {
			select {
			case tried <- struct{}{}:
			default:
			}
			return faulty.ErrLost
		})
		transaction := []json.RawMessage{edu("1", `{"@bob:here":{"PHONE":{"n":1}}}`), edu("2", `{"@bob:here":{"PHONE":{"n":2}}}`)}
		ctx, cancel := context.WithCancel(s.ctx)
		go func() {
			<-tried
			cancel()
		}()
		if err := s.Receive(ctx, origin, transaction); !errors.Is(err, writer.ErrUnavailable) {
			t.Fatalf("the error is %v", err)
		}
		s.wantQueue(t, "@bob:here", "PHONE")
		s.Timeout = 10 * time.Millisecond
		if err := s.Receive(s.ctx, origin, transaction); !errors.Is(err, writer.ErrUnavailable) {
			t.Fatalf("the error is %v", err)
		}
		s.Timeout = 0
		s.store.OnCommit(nil)
		s.receive(t, transaction...)
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":2}`)
	})
}

// The answer of a commit is lost, and the server sends the transaction again.
func TestTransactionWhoseCommitWasNotAnswered(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		s.store.LoseAnswer(2)
		for range 3 {
			s.receive(t, edu("1", `{"@bob:here":{"PHONE":{"n":1}}}`), edu("2", `{"@bob:here":{"PHONE":{"n":2}}}`))
		}
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":2}`)
	})
}

func TestDatabaseRefusesOneEDU(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		s.store.RefuseType("org.example.bad")
		bad := strings.Replace(string(edu("2", `{"@bob:here":{"PHONE":{"secret":2}}}`)), "org.example.x", "org.example.bad", 1)
		transaction := []json.RawMessage{
			edu("1", `{"@bob:here":{"PHONE":{"n":1}}}`), json.RawMessage(bad), edu("3", `{"@bob:here":{"PHONE":{"n":3}}}`),
		}
		s.receive(t, transaction...)
		s.receive(t, transaction...)
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":3}`)
		if want := []string{"applied", "refused", "applied", "applied", "refused", "applied"}; !slices.Equal(s.outcomes, want) {
			t.Errorf("the outcomes are %v, want %v", s.outcomes, want)
		}
		s.wantNothingLoggedOf(t, "secret")
	})
}

// A corrupt index is no fault of the message: the server sends all of it again.
func TestDatabaseFailsAtOneEDU(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		s.store.FailType("org.example.bad")
		bad := strings.Replace(string(edu("2", `{"@bob:here":{"PHONE":{"n":2}}}`)), "org.example.x", "org.example.bad", 1)
		transaction := []json.RawMessage{edu("1", `{"@bob:here":{"PHONE":{"n":1}}}`), json.RawMessage(bad)}
		if err := s.Receive(s.ctx, origin, transaction); !errors.Is(err, storage.ErrTransient) {
			t.Errorf("got the error %v; the outcomes are %v", err, s.outcomes)
		}
		s.store.OnCommit(nil)
		s.receive(t, transaction...)
		s.wantQueue(t, "@bob:here", "PHONE", `{"n":1}`, `{"n":2}`)
	})
}

// A server that stops while a transaction is stored has not refused it.
func TestTransactionWhileTheServerStops(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		s := startServer(t, open)
		committing := make(chan struct{})
		s.store.OnCommit(func(ctx context.Context, _ storage.Batch, _ faulty.Commit) error {
			close(committing)
			<-ctx.Done()
			return errors.New("the driver was interrupted")
		})
		received := make(chan error, 1)
		go func() { received <- s.Receive(s.ctx, origin, []json.RawMessage{edu("1", toBob)}) }()
		<-committing
		gone, cancel := context.WithCancel(s.ctx)
		cancel()
		if err := s.writer.Stop(gone); err != nil {
			t.Fatal(err)
		}
		if err := <-received; err == nil {
			t.Errorf("the message is lost; the outcomes are %v", s.outcomes)
		}
	})
}
