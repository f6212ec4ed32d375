package writer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

// accounts are a host's devices.
type accounts struct {
	mu      sync.Mutex
	devices map[string][]string
	err     error
}

func (a *accounts) UserDevices(_ context.Context, userID string) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.devices[userID]), a.err
}

func (a *accounts) DeviceOwners(context.Context, []string) (map[string]string, error) {
	return nil, errors.New("not asked for so few users")
}

func (a *accounts) set(userID string, deviceIDs ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.devices[userID] = deviceIDs
}

// "*" means the devices that exist when the message is committed: not those of when the request
// came, while other commits hold it up.
func TestSendReachesTheDevicesOfTheCommit(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		host := &accounts{devices: map[string][]string{bob.UserID: {"OLD", "STAYS"}}}
		directory, err := devices.NewDirectory(host)
		if err != nil {
			t.Fatal(err)
		}
		sender := writer.Sender{Directory: directory, Writer: f.Writer}
		release := f.holdNextCommit(t)
		sent := make(chan error, 1)
		go func() {
			sent <- sender.Send(f.ctx, writer.Message{
				Sender: "@alice:test", Type: "org.example.all",
				Targets: []devices.Target{{Device: types.Device{UserID: bob.UserID, DeviceID: devices.AllDevices}, Content: []byte(`{}`)}},
			})
		}()
		f.waitQueued(t, 1)
		directory.Changed(bob.UserID)
		host.set(bob.UserID, "STAYS", "NEW")
		directory.Changed(bob.UserID)
		release()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		for deviceID, want := range map[string]int{"OLD": 0, "STAYS": 1, "NEW": 1} {
			got, err := f.store.Messages(f.ctx, types.Device{UserID: bob.UserID, DeviceID: deviceID}, 0, 1<<62, 10, nil)
			if err != nil || len(got) != want {
				t.Errorf("device %s has %d messages (%v), want %d", deviceID, len(got), err, want)
			}
		}
	})
}

// All devices of somebody who has made very many are too many at once, and so is a large content for all of many: nothing is stored.
// Others' messages, and what names each device, are stored.
func TestSendToTooMany(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		many := make([]string, 10_001)
		for i := range many {
			many[i] = fmt.Sprint("D", i)
		}
		host := &accounts{devices: map[string][]string{bob.UserID: {bob.DeviceID}, "@many:test": many, "@some:test": many[:2000]}}
		directory, err := devices.NewDirectory(host)
		if err != nil {
			t.Fatal(err)
		}
		sender := writer.Sender{Directory: directory, Writer: f.Writer}
		all := func(userID string, size int) devices.Target {
			content := append([]byte(`{"a":"`), bytes.Repeat([]byte("x"), size)...)
			return devices.Target{Device: types.Device{UserID: userID, DeviceID: devices.AllDevices}, Content: append(content, `"}`...)}
		}
		for name, test := range map[string]struct {
			targets []devices.Target
			want    error
		}{
			"too many devices":       {[]devices.Target{all("@many:test", 1), all(bob.UserID, 1)}, writer.ErrTooManyCopies},
			"much for many":          {[]devices.Target{all("@some:test", 32<<20/2000), all(bob.UserID, 60<<10)}, nil},
			"too much data":          {[]devices.Target{all("@some:test", 64<<20/2000), all(bob.UserID, 1)}, writer.ErrTooManyCopies},
			"no more than there may": {[]devices.Target{all("@some:test", 1)}, nil},
		} {
			if err := sender.Send(f.ctx, writer.Message{Sender: "@alice:test", Type: name, Targets: test.targets}); !errors.Is(err, test.want) {
				t.Errorf("%s: %v, want %v", name, err, test.want)
			}
		}
		got, err := f.store.Messages(f.ctx, bob, 0, 1<<62, 10, nil)
		if err != nil || len(got) != 1 {
			t.Errorf("%d messages are stored, want one: %v", len(got), err)
		}
	})
}

func TestSendWithoutTheHostsAnswer(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		directory, err := devices.NewDirectory(&accounts{err: errors.New("no answer")})
		if err != nil {
			t.Fatal(err)
		}
		sender := writer.Sender{Directory: directory, Writer: f.Writer}
		err = sender.Send(f.ctx, writer.Message{Type: "x", Targets: []devices.Target{{Device: bob, Content: []byte(`{}`)}}})
		if !errors.Is(err, writer.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
	})
}

// A reader that follows the published position never misses a message that is committed later below
// it, however many commits run and fail.
func TestPublishedPositionsCoverEveryMessage(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		f := start(t, open, nil)
		var count int
		f.store.OnCommit(func(ctx context.Context, batch storage.Batch, real faulty.Commit) error {
			count++
			switch count % 5 {
			case 1:
				return faulty.ErrLost
			case 3:
				return errors.Join(real(ctx, batch), faulty.ErrLost)
			}
			return real(ctx, batch)
		})
		const senders, each = 8, 20
		var group sync.WaitGroup
		for range senders {
			group.Go(func() {
				for range each {
					if err := f.Submit(f.ctx, plain("x")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		var after types.Position
		for seen := 0; seen < senders*each; {
			through := f.Published()
			messages, err := f.store.Messages(f.ctx, bob, after, through, 1000, nil)
			if err != nil {
				t.Fatal(err)
			}
			seen, after = seen+len(messages), through
		}
		group.Wait()
		if names, _ := f.queue(t); len(names) != senders*each {
			t.Errorf("%d messages are stored, want %d", len(names), senders*each)
		}
	})
}
