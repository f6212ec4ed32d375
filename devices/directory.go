// Package devices answers which devices a message is for: it expands "*", passes over what does
// not exist, and keeps what it learned until the host reports a change.
package devices

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// AllDevices stands for every device of a user in the place of a device ID (client-server API,
// PUT /sendToDevice).
const AllDevices = "*"

const (
	// cachedUsers bounds the cache: at some 10 devices each it is about 20 MiB.
	cachedUsers = 1 << 14
	// shards bounds the memory of the change counters. Two users in one shard cost spare look-ups
	// at each other's changes, and a request a repetition at the other's deletions, nothing else.
	shards = 1 << 12
	// fewUsers is up to how many unknown users of one request are looked up one by one, which also
	// fills the cache. Beyond it their devices are looked up together.
	fewUsers = 8
	// lookupsAtOnce bounds the connections that one request takes from the host's pool.
	lookupsAtOnce = 4
	// idsAtOnce keeps a look-up below SQLite's 999 variables in a statement.
	idsAtOnce = 500
)

// Source is where the host keeps its users' devices. The names in parentheses are those of the promises in package hosttest.
//
// Requests call it from their goroutines, each for four users at once, and the creation and deletion of devices from theirs, up to the end
// of ctx. Whatever it remembers must be as new as the last creation or deletion that has returned.
type Source interface {
	// UserDevices returns the IDs of all devices of a local user in any order (all-devices-are-listed). An unknown user has none; that is
	// no error (unknown-users-have-no-devices). For what is no user ID of the host's own it returns ErrNotLocal
	// (users-of-others-are-not-local), while the host starts ErrNotReady, and where it can't tell any other error, never a shorter list
	// (failed-look-ups-are-errors): what is kept for devices that are not in it is deleted. After an error messages get a 503, and nothing
	// is deleted.
	UserDevices(ctx context.Context, userID string) ([]string, error)
	// DeviceOwners returns a user for each of the device IDs that exists, in one query (device-owners-are-found). Where several users have a
	// device of that ID it returns any one of them. It is asked for 500 IDs at the most, and only where a message is for many users. Its
	// errors are as those of UserDevices.
	DeviceOwners(ctx context.Context, deviceIDs []string) (map[string]string, error)
}

// ErrNotReady is returned by a Source while its host starts.
var ErrNotReady = errors.New("the host can't say yet which devices exist")

// ErrNotLocal is returned by a Source for what is no user ID of its host's own.
var ErrNotLocal = errors.New("no user of this server")

// Target is the content for one device of a local user, or with the ID AllDevices for each
// device that is not named beside it.
type Target struct {
	types.Device
	Content []byte
	// MessageID is the org.matrix.msgid of the content, for the trace; it may be left empty.
	MessageID string
}

// Directory resolves targets to devices. It is safe for concurrent use.
type Directory struct {
	// Observe is told of each resolution for how many users the devices were known, and for how many they were
	// not; nil means that nobody is. It is set before the first use.
	Observe func(hits, misses int)

	source   Source
	cache    *lru.Cache[string, cached]
	seed     maphash.Seed
	changed  atomic.Uint64 // how many changes of any user have ended
	changes  [shards]atomic.Uint64
	changing [shards]atomic.Int64 // how many changes are under way
	deleted  [shards]atomic.Uint64
}

type cached struct {
	deviceIDs []string
	asOf      uint64 // the user's change counter before the look-up
	some      bool   // there may be more devices: these are those that were asked for
}

// has reports whether it is known which of the devices exist that a request has for the user.
func (c cached) has(u *user) bool {
	if !c.some {
		return true
	}
	if u.toAll {
		return false
	}
	found := 0
	for _, deviceID := range c.deviceIDs {
		if _, named := u.named[deviceID]; named {
			found++
		}
	}
	return found == len(u.named)
}

// NewDirectory returns a Directory with an empty cache.
func NewDirectory(source Source) (*Directory, error) {
	cache, err := lru.New[string, cached](cachedUsers)
	if err != nil {
		return nil, err
	}
	return &Directory{source: source, cache: cache, seed: maphash.MakeSeed()}, nil
}

// Changed forgets what is known of a user's devices. It is to be called after every creation and deletion of a
// device, before that returns to its caller: neither an answer read half way through the change nor a resolution
// made before it is used from then on.
func (d *Directory) Changed(userID string) {
	d.changed.Add(1) // first: see Watch
	d.counter(userID).Add(1)
}

// Change runs change, which creates or deletes devices of a user, and calls Changed when it returns. Until then the host is
// asked each time: it may show a device to others before the call that creates it returns.
func (d *Directory) Change(userID string, change func() error) error {
	underWay := &d.changing[d.shard(userID)]
	underWay.Add(1)
	defer underWay.Add(-1) // after Changed: the cache is not believed in between
	defer d.Changed(userID)
	return change()
}

// Deleted is to be called after a deletion of a user's devices, whether or not it succeeded, before what is kept for them is
// deleted too.
func (d *Directory) Deleted(userID string) { d.deleted[d.shard(userID)].Add(1) }

// NoneDeleted returns a function that reports whether no device of the user was deleted since. Now and then it says no although
// none was, because one of another user was; called anew, NoneDeleted returns one that says yes. It is safe for concurrent use,
// and does not block.
func (d *Directory) NoneDeleted(userID string) func() bool {
	counter := &d.deleted[d.shard(userID)]
	before := counter.Load()
	return func() bool { return counter.Load() == before }
}

// Watch is for what else is looked up of a user's devices and kept, where the look-up itself tells whose they are. It is to be
// called before the look-up. After it, ofUser takes the user and returns a function that reports whether the answer holds: no
// device of the user was created or deleted since Watch, and none is being created or deleted now. Now and then it says no
// because of another user; called anew, Watch leads to one that says yes. All of it is safe for concurrent use, and does not block.
func (d *Directory) Watch() (ofUser func(userID string) (holds func() bool)) {
	before := d.changed.Load()
	return func(userID string) func() bool {
		shard := d.shard(userID)
		asOf := d.changes[shard].Load()
		if d.changed.Load() != before { // a change has ended meanwhile, which may have been the user's
			return func() bool { return false }
		}
		return func() bool { return d.changes[shard].Load() == asOf && d.changing[shard].Load() == 0 }
	}
}

func (d *Directory) shard(userID string) uint64 { return maphash.String(d.seed, userID) % shards }

func (d *Directory) counter(userID string) *atomic.Uint64 { return &d.changes[d.shard(userID)] }

// Resolution is the devices that targets stood for at one moment.
type Resolution struct {
	Copies []storage.Copy
	// MessageIDs are those of the targets that the copies are made from, in the order of Copies; nil if no target has one.
	MessageIDs []string
	// Missing are the targets that no copy is made from because there is no such device: for AllDevices, no device at all.
	Missing []Target
	stamps  []stamp
}

type stamp struct {
	counter *atomic.Uint64
	value   uint64
}

// Current reports whether no device of any user in the resolution was created or deleted since.
func (r Resolution) Current() bool {
	for _, s := range r.stamps {
		if s.counter.Load() != s.value {
			return false
		}
	}
	return true
}

// Resolve returns one copy for each existing device among the targets, and the targets that do not exist, in no
// particular order.
// An error is the host's: nothing can be said of any target then.
func (d *Directory) Resolve(ctx context.Context, targets []Target) (Resolution, error) {
	users := make(map[string]*user)
	var r Resolution
	for _, t := range targets {
		if !storage.Storable(t.Device) {
			r.Missing = append(r.Missing, t)
			continue // and PostgreSQL fails the query that asks for an ID with NUL
		}
		u := users[t.UserID]
		if u == nil {
			counter := d.counter(t.UserID)
			u = &user{id: t.UserID, stamp: stamp{counter, counter.Load()}, named: make(map[string]Target)}
			users[t.UserID] = u
		}
		if t.DeviceID == AllDevices {
			u.all, u.toAll = t, true
		} else {
			u.named[t.DeviceID] = t
		}
	}
	if err := d.lookUp(ctx, users); err != nil {
		return Resolution{}, err
	}
	if slices.ContainsFunc(targets, func(t Target) bool { return t.MessageID != "" }) {
		r.MessageIDs = make([]string, 0, len(targets))
	}
	for _, u := range users {
		r.stamps = append(r.stamps, u.stamp)
		u.resolve(&r)
	}
	return r, nil
}

// user is what one request has for one user.
type user struct {
	id     string
	stamp  stamp
	named  map[string]Target
	all    Target
	toAll  bool
	exists []string
}

func (u *user) resolve(r *Resolution) {
	before := len(r.Copies)
	for _, deviceID := range u.exists {
		device := types.Device{UserID: u.id, DeviceID: deviceID}
		if !storage.Storable(device) {
			continue
		}
		target, named := u.named[deviceID]
		switch {
		case named:
			delete(u.named, deviceID)
		case u.toAll:
			target = u.all
		default:
			continue
		}
		r.Copies = append(r.Copies, storage.Copy{Device: device, Content: target.Content})
		if r.MessageIDs != nil {
			r.MessageIDs = append(r.MessageIDs, target.MessageID)
		}
	}
	for _, target := range u.named {
		r.Missing = append(r.Missing, target)
	}
	if u.toAll && len(r.Copies) == before {
		r.Missing = append(r.Missing, u.all)
	}
}

// lookUp fills in the devices that exist, as far as the targets need them.
func (d *Directory) lookUp(ctx context.Context, users map[string]*user) error {
	var whole, named []*user
	for _, u := range users {
		known, ok := d.cache.Get(u.id)
		switch {
		case ok && known.asOf == u.stamp.value && d.changing[d.shard(u.id)].Load() == 0 && known.has(u):
			u.exists = known.deviceIDs
		case u.toAll:
			whole = append(whole, u)
		default:
			named = append(named, u)
		}
	}
	if d.Observe != nil {
		misses := len(whole) + len(named)
		d.Observe(len(users)-misses, misses)
	}
	if len(named) <= fewUsers {
		whole = append(whole, named...)
	} else {
		ambiguous, err := d.lookUpNamed(ctx, named)
		if err != nil {
			return err
		}
		whole = append(whole, ambiguous...)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookupsAtOnce)
	for _, u := range whole {
		group.Go(func() error { return d.lookUpWhole(ctx, u) })
	}
	return group.Wait()
}

func (d *Directory) lookUpWhole(ctx context.Context, u *user) error {
	deviceIDs, err := d.source.UserDevices(ctx, u.id)
	if err != nil {
		return err
	}
	u.exists = deviceIDs
	d.cache.Add(u.id, cached{deviceIDs: deviceIDs, asOf: u.stamp.value})
	return nil
}

// lookUpNamed looks up the named devices of all users together, and returns the users of whom
// that says nothing because another user has a device of the same ID.
func (d *Directory) lookUpNamed(ctx context.Context, users []*user) (ambiguous []*user, err error) {
	var deviceIDs []string
	for _, u := range users {
		for deviceID := range u.named {
			deviceIDs = append(deviceIDs, deviceID)
		}
	}
	slices.Sort(deviceIDs)
	owners := make(map[string]string, len(deviceIDs))
	for chunk := range slices.Chunk(slices.Compact(deviceIDs), idsAtOnce) {
		found, err := d.source.DeviceOwners(ctx, chunk)
		if err != nil {
			return nil, err
		}
		for deviceID, owner := range found {
			owners[deviceID] = owner
		}
	}
	for _, u := range users {
		if u.findAmong(owners) {
			d.keepSome(u)
		} else {
			ambiguous = append(ambiguous, u)
		}
	}
	return ambiguous, nil
}

// findAmong fills in which of the named devices exist. It returns false if another user has one of the same ID.
func (u *user) findAmong(owners map[string]string) bool {
	for deviceID := range u.named {
		owner, exists := owners[deviceID]
		if exists && owner != u.id {
			return false
		}
		if exists {
			u.exists = append(u.exists, deviceID)
		}
	}
	return true
}

// keepSome adds the devices that were found to those which are known of the user.
func (d *Directory) keepSome(u *user) {
	deviceIDs := slices.Clone(u.exists)
	if known, ok := d.cache.Get(u.id); ok && known.asOf == u.stamp.value {
		for _, deviceID := range known.deviceIDs {
			if _, named := u.named[deviceID]; !named {
				deviceIDs = append(deviceIDs, deviceID)
			}
		}
	}
	d.cache.Add(u.id, cached{deviceIDs: deviceIDs, asOf: u.stamp.value, some: true})
}
