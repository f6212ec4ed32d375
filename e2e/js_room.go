package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// JSRoom is a room with devices that encrypt by matrix-js-sdk, and the account of what each of them has to read and to hear.
type JSRoom struct {
	ID      string
	program *jsProgram
	// ByHand makes what is said go from one device to the other without the server, while the keys go through it. The host panics if it
	// is stopped while it is sent messages of rooms, and once it was killed it may lose them, or take no more.
	ByHand bool

	mu      sync.Mutex
	devices []*JSDevice
	said    []object
	read    map[*JSDevice]int
	heard   map[*JSDevice]int
}

// NewJSRoom makes a room with two users of two devices each. A device shares a new key with all others before each message.
func NewJSRoom(t testing.TB, here, there *Server) (r *JSRoom, devices []*JSDevice) {
	t.Helper()
	r = &JSRoom{program: startJS(t), read: map[*JSDevice]int{}, heard: map[*JSDevice]int{}}
	for _, s := range []*Server{here, there} {
		user := Register(t, s, "user") // its device has no keys
		for _, name := range []id.DeviceID{"JSFIRST", "JSSECOND"} {
			devices = append(devices, NewJSDevice(t, r.program, user, name))
		}
	}
	r.devices = slices.Clone(devices)
	devices[0].must(t, "create", object{"rotation": 1}, &r.ID)
	devices[2].must(t, "join", object{"room": r.ID, "via": here.name}, nil)
	r.awaitAll(t)
	// One after the other: on PostgreSQL the host gives the same one-time key to two devices that claim one at
	// once, and the second to use it is not understood.
	r.SayInTurn(t, devices...)
	return r, devices
}

// awaitAll waits until each device sees the room, its members and all devices.
func (r *JSRoom) awaitAll(t testing.TB) {
	t.Helper()
	var members []string
	for _, d := range r.devices {
		members = append(members, d.UserID.String())
	}
	slices.Sort(members)
	know := object{"room": r.ID, "members": slices.Compact(members), "devices": addresses(r.devices)}
	for _, d := range r.devices {
		eventually(t, d.String()+" sees the room and all devices", func() (bool, any) { return d.is(t, "knows", know), false })
	}
}

// Add takes a new device in, which has to be able to read from now on, and in the end also what was said before.
func (r *JSRoom) Add(t testing.TB, d *JSDevice) {
	t.Helper()
	r.devices = append(r.devices, d)
	r.awaitAll(t)
	r.read[d] = len(r.said)
}

// Remove ends the account of a device.
func (r *JSRoom) Remove(d *JSDevice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.devices = slices.DeleteFunc(r.devices, func(other *JSDevice) bool { return other == d })
}

// Say lets a device say something in the room, and the next number to all other devices.
func (r *JSRoom) Say(ctx context.Context, d *JSDevice) error {
	r.mu.Lock()
	readers := slices.Clone(r.devices)
	r.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(readers), func(other *JSDevice) bool { return other == d })
	if err := d.do(ctx, "say", object{"devices": addresses(others)}, nil); err != nil {
		return err
	}
	message := object{"room": r.ID, "body": unique("message")}
	if !r.ByHand {
		if err := d.do(ctx, "send", message, nil); err != nil {
			return err
		}
		r.count(readers, others, nil)
		return nil
	}
	var content json.RawMessage
	if err := d.do(ctx, "encrypt", message, &content); err != nil {
		return err
	}
	e := object{
		"event_id": unique("$event"), "room_id": r.ID, "sender": d.UserID, "type": "m.room.encrypted", "content": content,
		"origin_server_ts": time.Now().UnixMilli(),
	}
	r.count(readers, others, e)
	for _, reader := range readers {
		if err := reader.do(ctx, "tell", object{"events": []object{e}}, nil); err != nil {
			return err
		}
	}
	return nil
}

// count puts what was said into the account.
func (r *JSRoom) count(readers, hearers []*JSDevice, e object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, e)
	for _, d := range readers {
		r.read[d]++
	}
	for _, d := range hearers {
		r.heard[d]++
	}
}

// SayInTurn lets devices say something, one after the other.
func (r *JSRoom) SayInTurn(t testing.TB, devices ...*JSDevice) {
	t.Helper()
	for _, d := range devices {
		if err := r.Say(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
}

// Talk lets devices talk all at once, while something is done.
func (r *JSRoom) Talk(t testing.TB, devices []*JSDevice, meanwhile func()) {
	t.Helper()
	talk(t, devices, talkPaceJS, func(d *JSDevice) error { return r.Say(t.Context(), d) }, meanwhile)
}

// talkPaceJS is between two messages of a device. All devices of a test share one processor.
const talkPaceJS = 50 * time.Millisecond

// Progress waits until so many more messages are said, and twice as many are read.
func (r *JSRoom) Progress(t testing.TB, messages int) {
	t.Helper()
	progress(t, messages, func() (said, read int) { return r.counts(t) })
}

func (r *JSRoom) counts(t testing.TB) (said, read int) {
	t.Helper()
	r.mu.Lock()
	devices, said := slices.Clone(r.devices), len(r.said)
	r.mu.Unlock()
	for _, d := range devices {
		s, err := d.state(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		read += s.Read
	}
	return said, read
}

// WantAllRead waits until every device has read and heard what it has to, and fails the test if one could not, or had any trouble on
// the way.
func (r *JSRoom) WantAllRead(t testing.TB) {
	t.Helper()
	within(t, silentRecovery, "every device reads and hears everything", func() (bool, any) {
		trouble := r.missing(t)
		return len(trouble) == 0, strings.Join(trouble, "\n")
	})
	read, heard := 0, 0
	for _, d := range r.devices {
		read, heard = read+r.read[d], heard+r.heard[d]
	}
	t.Logf("%d messages, read %d times, none undecryptable; %d messages to devices, none missing", len(r.said), read, heard)
}

// missing says what each device has not read and heard.
func (r *JSRoom) missing(t testing.TB) (trouble []string) {
	t.Helper()
	for _, d := range r.devices {
		s, err := d.state(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Faults) > 0 {
			t.Fatalf("%s had %d faults:\n%s", d, len(s.Faults), strings.Join(s.Faults[:min(len(s.Faults), 10)], "\n"))
		}
		if s.Read != r.read[d] || len(s.Unread) > 0 || s.Heard != r.heard[d] {
			trouble = append(trouble, fmt.Sprintf("%s has read %d of %d, heard %d of %d; unread: %v",
				d, s.Read, r.read[d], s.Heard, r.heard[d], s.Unread))
		}
	}
	return trouble
}
