//go:build goolm

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// EncryptedDevice is a device as people use one: it encrypts for a room, sends the keys to all other
// devices there, uploads one-time keys when few are left, and keeps its since token and its keys while it is offline.
type EncryptedDevice struct {
	*Client
	ctx     context.Context // as long as the test
	machine *crypto.OlmMachine
	faults  faultLog
	sas     *sasUser

	// turn is held while the device works on a /sync response, and while its user does something. The
	// library has gaps between reading and writing what it knows of devices and verifications.
	turn sync.Mutex
	stop func() // ends the /syncs, nil while the device is offline

	mu         sync.Mutex
	read       map[string]bool // what it could decrypt
	unreadable []*event.Event  // what it was told and could not decrypt so far
}

// NewEncryptedDevice makes a device of a client that is signed in, and uploads its keys. It is offline.
func NewEncryptedDevice(t testing.TB, c *Client) *EncryptedDevice {
	t.Helper()
	d := &EncryptedDevice{Client: c, read: map[string]bool{}}
	log := zerolog.New(&d.faults).Level(zerolog.ErrorLevel)
	d.ctx = log.WithContext(t.Context())
	states := mautrix.NewMemoryStateStore().(*mautrix.MemoryStateStore)
	states.JoinRules = map[id.RoomID]*event.JoinRulesEventContent{} // which the library forgets to make
	d.machine = crypto.NewOlmMachine(c.Client, &log, crypto.NewMemoryStore(nil), states)
	d.machine.SetBackgroundCtx(d.ctx)
	syncer := mautrix.NewDefaultSyncer()
	syncer.OnSync(d.machine.ProcessSyncResponse)
	syncer.OnEvent(c.StateStoreSyncHandler)
	syncer.OnEventType(event.StateMember, d.machine.HandleMemberEvent)
	c.Client.Client.Transport = patientTransport{c.server}
	c.Syncer, c.StateStore, c.Crypto = turns{syncer, d}, states, d
	d.sas = newSASUser(t, d)
	if err := errors.Join(d.machine.Load(d.ctx), d.machine.ShareKeys(d.ctx, -1)); err != nil {
		t.Fatalf("the keys of %s: %v", d, err)
	}
	t.Cleanup(d.Offline)
	return d
}

func (d *EncryptedDevice) String() string { return d.UserID.String() + " " + d.DeviceID.String() }

// Online lets the device follow /sync, from where it was when it went offline.
func (d *EncryptedDevice) Online() {
	ctx, cancel := context.WithCancel(d.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := d.SyncWithContext(ctx)
		if ctx.Err() == nil && !errors.Is(err, mautrix.MUnknownToken) {
			d.faults.add(fmt.Sprintf("the /syncs ended: %v", err))
		}
	}()
	d.stop = func() { cancel(); <-done }
}

// Offline ends the /syncs, after the response that the device is at work on.
func (d *EncryptedDevice) Offline() {
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
}

// act lets the user of the device do something.
func (d *EncryptedDevice) act(action func(ctx context.Context) error) error {
	d.turn.Lock()
	defer d.turn.Unlock()
	return action(d.ctx)
}

// must lets the user do something that works.
func (d *EncryptedDevice) must(t testing.TB, action func(ctx context.Context) error) {
	t.Helper()
	if err := d.act(action); err != nil {
		t.Fatalf("%s: %v", d, err)
	}
}

// turns gives each response to the device when it is its turn.
type turns struct {
	*mautrix.DefaultSyncer
	d *EncryptedDevice
}

// ProcessResponse works on a response to its end, also when the device is about to go offline: its token is stored already.
func (s turns) ProcessResponse(_ context.Context, res *mautrix.RespSync, since string) error {
	return s.d.act(func(ctx context.Context) error {
		err := s.DefaultSyncer.ProcessResponse(ctx, res, since)
		s.d.decrypt(ctx)
		return err
	})
}

// OnFailedSync ends the /syncs: the transport has repeated whatever can be repeated.
func (s turns) OnFailedSync(_ *mautrix.RespSync, err error) (time.Duration, error) { return 0, err }

// Tell gives the device an event of the room, which it decrypts when it has the key and is online.
func (d *EncryptedDevice) Tell(e *event.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unreadable = append(d.unreadable, e)
}

// decrypt goes over what could not be read so far.
func (d *EncryptedDevice) decrypt(ctx context.Context) {
	d.mu.Lock()
	events := d.unreadable
	d.unreadable = nil
	d.mu.Unlock()
	for _, e := range events {
		plain, err := d.Decrypt(ctx, e)
		switch {
		case err == nil:
			d.mu.Lock()
			d.read[plain.Content.AsMessage().Body] = true
			d.mu.Unlock()
		case errors.Is(err, crypto.NoSessionFound):
			d.Tell(e)
		default:
			d.faults.add(fmt.Sprintf("decrypting %s: %v", e.ID, err))
		}
	}
}

// counts returns how many messages the device has read, and how many it could not read so far.
func (d *EncryptedDevice) counts() (read, unreadable int) {
	if d.stop != nil {
		_ = d.act(func(ctx context.Context) error { d.decrypt(ctx); return nil })
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.read), len(d.unreadable)
}

// RequestKeys asks another device of the same user for the key of each message that the device cannot read.
func (d *EncryptedDevice) RequestKeys(t testing.TB, from *EncryptedDevice) (requests int) {
	t.Helper()
	d.must(t, func(ctx context.Context) error {
		for session, e := range d.missingSessions() {
			err := d.machine.SendRoomKeyRequest(ctx, e.RoomID, e.Content.AsEncrypted().SenderKey, session, "",
				map[id.UserID][]id.DeviceID{from.UserID: {from.DeviceID}})
			if err != nil {
				return err
			}
			requests++
		}
		return nil
	})
	return requests
}

// missingSessions returns the sessions whose key is not there, with an event of each.
func (d *EncryptedDevice) missingSessions() map[id.SessionID]*event.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	sessions := map[id.SessionID]*event.Event{}
	for _, e := range d.unreadable {
		sessions[e.Content.AsEncrypted().SessionID] = e
	}
	return sessions
}

// CrossSign makes the user's cross-signing keys on the device.
func (d *EncryptedDevice) CrossSign(t testing.TB) {
	t.Helper()
	d.must(t, func(ctx context.Context) error {
		_, _, err := d.machine.GenerateAndUploadCrossSigningKeysWithPassword(ctx, password, "")
		if err != nil {
			return err
		}
		if err = d.machine.SignOwnDevice(ctx, d.machine.OwnIdentity()); err != nil {
			return err
		}
		return d.machine.SignOwnMasterKey(ctx)
	})
}

// keysLeft returns how many one-time keys the server has for the device.
func (d *EncryptedDevice) keysLeft() (keys int, err error) {
	res, err := d.UploadKeys(d.ctx, &mautrix.ReqUploadKeys{})
	if err != nil {
		return 0, err
	}
	return res.OneTimeKeyCounts.SignedCurve25519, nil
}

// knows tells whether the device has heard of another one.
func (d *EncryptedDevice) knows(other *EncryptedDevice) (known bool) {
	_ = d.act(func(ctx context.Context) error {
		device, err := d.machine.CryptoStore.GetDevice(ctx, other.UserID, other.DeviceID)
		known = err == nil && device != nil
		return err
	})
	return known
}

// The rest is what the library asks of a client that encrypts.

// Init does nothing: a device is ready when it is made.
func (d *EncryptedDevice) Init(context.Context) error { return nil }

// Decrypt decrypts an event of a room.
func (d *EncryptedDevice) Decrypt(ctx context.Context, e *event.Event) (*event.Event, error) {
	return d.machine.DecryptMegolmEvent(ctx, e)
}

// Encrypt encrypts for the devices of a room. If the session is used up it shares a new one with them first.
func (d *EncryptedDevice) Encrypt(ctx context.Context, room id.RoomID, kind event.Type, content any) (*event.EncryptedEventContent, error) {
	encrypted, err := d.machine.EncryptMegolmEvent(ctx, room, kind, content)
	if err == nil || !crypto.IsShareError(err) {
		return encrypted, err
	}
	users, err := d.StateStore.GetRoomJoinedOrInvitedMembers(ctx, room)
	if err != nil {
		return nil, err
	}
	if err = d.machine.ShareGroupSession(ctx, room, users); err != nil {
		return nil, err
	}
	return d.machine.EncryptMegolmEvent(ctx, room, kind, content)
}

// WaitForSession waits for the key of a message.
func (d *EncryptedDevice) WaitForSession(ctx context.Context, room id.RoomID, key id.SenderKey, session id.SessionID, timeout time.Duration) bool {
	return d.machine.WaitForSession(ctx, room, key, session, timeout)
}

// RequestSession does nothing: keys are requested where a test says so.
func (d *EncryptedDevice) RequestSession(context.Context, id.RoomID, id.SenderKey, id.SessionID, id.UserID, id.DeviceID) {
}

// faultLog takes what the library logs as errors, such as a send-to-device message that it cannot decrypt or that it had before.
type faultLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *faultLog) Write(line []byte) (int, error) {
	l.add(strings.TrimSpace(string(line)))
	return len(line), nil
}

func (l *faultLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *faultLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}
