//go:build goolm

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// EncryptedRoom is a room with devices that encrypt, and the account of what each of them has to be able to read. What they say goes from
// one to the other without the server: the host may lose a room message when it is killed, keep it back for half a minute, or take no
// more of them, and none of that is what the keys are tested for.
type EncryptedRoom struct {
	ID id.RoomID

	mu      sync.Mutex
	devices []*EncryptedDevice
	said    []*event.Event
	want    map[*EncryptedDevice]int
}

// NewEncryptedRoom makes a room with two users of two devices each, which are online and have said something. A device shares a
// new key with all others after each rotation messages: the less, the more goes by send-to-device messages.
func NewEncryptedRoom(t testing.TB, here, there *Server, rotation int) (r *EncryptedRoom, devices []*EncryptedDevice) {
	t.Helper()
	for _, s := range []*Server{here, there} {
		first := Register(t, s, "user")
		second := first.Login(t, s, "SECOND")
		devices = append(devices, NewEncryptedDevice(t, first), NewEncryptedDevice(t, second))
	}
	r = &EncryptedRoom{want: map[*EncryptedDevice]int{}}
	owner, guest := devices[0], devices[2]
	key := ""
	room, err := owner.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{
		Preset: "public_chat",
		InitialState: []*event.Event{{
			Type: event.StateEncryption, StateKey: &key,
			Content: event.Content{Parsed: &event.EncryptionEventContent{
				Algorithm: id.AlgorithmMegolmV1, RotationPeriodMessages: rotation,
			}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.ID = room.RoomID
	if _, err = guest.JoinRoom(t.Context(), r.ID.String(), &mautrix.ReqJoinRoom{Via: []string{here.name}}); err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		d.Online()
	}
	for _, d := range devices {
		d.awaitRoom(t, r.ID, owner.UserID, guest.UserID)
		d.awaitDevices(t, devices)
	}
	r.devices = slices.Clone(devices)
	// One after the other: on PostgreSQL the host gives the same one-time key to two devices that claim one at
	// once, and the second to use it is not understood.
	r.SayInTurn(t, 1, devices...)
	return r, devices
}

// awaitRoom waits until the device sees the room, that it is encrypted, and its members.
func (d *EncryptedDevice) awaitRoom(t testing.TB, room id.RoomID, members ...id.UserID) {
	t.Helper()
	eventually(t, d.String()+" sees the room", func() (bool, any) {
		seen, err := d.StateStore.IsEncrypted(d.ctx, room)
		for _, user := range members {
			seen = seen && d.StateStore.IsInRoom(d.ctx, room, user)
		}
		return seen, fmt.Sprint(err, d.faults.all())
	})
}

// awaitDevices asks for the devices of the users, as a client does that opens a room, until all of them are there.
func (d *EncryptedDevice) awaitDevices(t testing.TB, devices []*EncryptedDevice) {
	t.Helper()
	var users []id.UserID
	for _, other := range devices {
		users = append(users, other.UserID)
	}
	slices.Sort(users)
	users = slices.Compact(users)
	eventually(t, d.String()+" knows all devices", func() (bool, any) {
		d.turn.Lock()
		_, err := d.machine.FetchKeys(d.ctx, slices.Clone(users), true)
		d.turn.Unlock()
		return err == nil && !slices.ContainsFunc(devices, func(other *EncryptedDevice) bool { return !d.knows(other) }), err
	})
}

// Add waits until all devices of the room have heard of a new one. From then on it has to be able to read, and in the end also what
// was said before.
func (r *EncryptedRoom) Add(t testing.TB, d *EncryptedDevice) {
	t.Helper()
	for _, other := range r.devices {
		eventually(t, other.String()+" hears of "+d.String(), func() (bool, any) { return other.knows(d), nil })
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.devices = append(r.devices, d)
	r.want[d] = len(r.said)
	for _, e := range r.said {
		d.Tell(e)
	}
}

// Remove ends the account of a device.
func (r *EncryptedRoom) Remove(d *EncryptedDevice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.devices = slices.DeleteFunc(r.devices, func(other *EncryptedDevice) bool { return other == d })
	delete(r.want, d)
}

// Say lets a device encrypt a message. Every device of the room has to be able to read it, also the one that encrypted it.
func (r *EncryptedRoom) Say(d *EncryptedDevice) error {
	r.mu.Lock()
	readers := slices.Clone(r.devices)
	r.mu.Unlock()
	e := &event.Event{
		ID: id.EventID(unique("$event")), RoomID: r.ID, Sender: d.UserID, Type: event.EventEncrypted, Timestamp: time.Now().UnixMilli(),
	}
	if err := d.act(func(ctx context.Context) error {
		encrypted, err := d.Encrypt(ctx, r.ID, event.EventMessage, &event.MessageEventContent{MsgType: event.MsgText, Body: e.ID.String()})
		e.Content.Parsed = encrypted
		return err
	}); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, e)
	for _, reader := range readers {
		r.want[reader]++
		reader.Tell(e)
	}
	return nil
}

// SayInTurn lets devices say so many messages each, one after the other.
func (r *EncryptedRoom) SayInTurn(t testing.TB, messages int, devices ...*EncryptedDevice) {
	t.Helper()
	for range messages {
		for _, d := range devices {
			if err := r.Say(d); err != nil {
				t.Fatalf("%s encrypts: %v", d, err)
			}
		}
	}
}

// Talk lets devices talk all at once, while something is done.
func (r *EncryptedRoom) Talk(t testing.TB, devices []*EncryptedDevice, meanwhile func()) {
	t.Helper()
	talk(t, devices, talkPace, r.Say, meanwhile)
}

// talkPace is between two messages of a device. Without it the key of a message comes behind a backlog of others.
const talkPace = 10 * time.Millisecond

// Progress waits until so many more messages are said, and as many more are read by all devices together, besides by those that said
// them.
func (r *EncryptedRoom) Progress(t testing.TB, messages int) {
	t.Helper()
	progress(t, messages, r.counts)
}

func (r *EncryptedRoom) counts() (said, read int) {
	r.mu.Lock()
	devices, said := slices.Clone(r.devices), len(r.said)
	r.mu.Unlock()
	for _, d := range devices {
		n, _ := d.counts()
		read += n
	}
	return said, read
}

// WantAllRead waits until every device has read what it has to, and fails the test if one could not, or had any trouble on
// the way.
func (r *EncryptedRoom) WantAllRead(t testing.TB, patience time.Duration) {
	t.Helper()
	within(t, patience, "every device reads every message", func() (bool, any) {
		trouble := r.unread()
		return len(trouble) == 0, strings.Join(trouble, "\n")
	})
	total := 0
	for _, d := range r.devices {
		if faults := d.faults.all(); len(faults) > 0 {
			t.Errorf("%s had %d faults:\n%s", d, len(faults), strings.Join(faults[:min(len(faults), 10)], "\n"))
		}
		total += r.want[d]
		eventually(t, d.String()+" has uploaded one-time keys for those that were used", func() (bool, any) {
			keys, err := d.keysLeft()
			return keys >= 50, fmt.Sprint(keys, err)
		})
	}
	t.Logf("%d messages, read %d times", len(r.said), total)
}

// unread says what each device has not read.
func (r *EncryptedRoom) unread() (trouble []string) {
	for _, d := range r.devices {
		if read, unreadable := d.counts(); read != r.want[d] || unreadable > 0 {
			trouble = append(trouble, fmt.Sprintf("%s: of %d messages %d are read, for %d the key is not there; faults: %v",
				d, r.want[d], read, unreadable, d.faults.all()))
		}
	}
	return trouble
}
