package devices_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/devices"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// host keeps users' devices and counts what it is asked.
type host struct {
	mu      sync.Mutex
	devices map[string][]string
	err     error
	whole   []string   // the users asked for by UserDevices
	owners  [][]string // the device IDs of each call of DeviceOwners
	// answering, if set, is called by UserDevices once it has its answer and before it returns it.
	answering func(userID string)
}

func (h *host) UserDevices(_ context.Context, userID string) ([]string, error) {
	h.mu.Lock()
	h.whole = append(h.whole, userID)
	deviceIDs, err, answering := slices.Clone(h.devices[userID]), h.err, h.answering
	h.mu.Unlock()
	if answering != nil {
		answering(userID)
	}
	return deviceIDs, err
}

func (h *host) DeviceOwners(_ context.Context, deviceIDs []string) (map[string]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.owners = append(h.owners, deviceIDs)
	owners := make(map[string]string)
	// Of several owners it returns the last one by name.
	for _, userID := range slices.Sorted(maps.Keys(h.devices)) {
		for _, deviceID := range h.devices[userID] {
			if slices.Contains(deviceIDs, deviceID) {
				owners[deviceID] = userID
			}
		}
	}
	return owners, h.err
}

func (h *host) set(userID string, deviceIDs ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.devices[userID] = deviceIDs
}

func (h *host) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

// asked returns the number of calls since the last time.
func (h *host) asked() (whole, owners int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	whole, owners = len(h.whole), len(h.owners)
	h.whole, h.owners = nil, nil
	return whole, owners
}

func newDirectory(t *testing.T) (*devices.Directory, *host) {
	t.Helper()
	h := &host{devices: map[string][]string{"@alice:x": {"PHONE", "LAPTOP"}, "@bob:x": {"PHONE"}}}
	directory, err := devices.NewDirectory(h)
	if err != nil {
		t.Fatal(err)
	}
	return directory, h
}

func target(userID, deviceID, content string) devices.Target {
	return devices.Target{Device: types.Device{UserID: userID, DeviceID: deviceID}, Content: []byte(content)}
}

func resolve(t *testing.T, d *devices.Directory, targets ...devices.Target) devices.Resolution {
	t.Helper()
	r, err := d.Resolve(t.Context(), targets)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// copies returns "user/device=content" of each copy in order.
func copies(r devices.Resolution) []string {
	var all []string
	for _, c := range r.Copies {
		all = append(all, c.UserID+"/"+c.DeviceID+"="+string(c.Content))
	}
	slices.Sort(all)
	return all
}

func wantCopies(t *testing.T, r devices.Resolution, want ...string) {
	t.Helper()
	if got := copies(r); !slices.Equal(got, want) {
		t.Errorf("the copies are %v, want %v", got, want)
	}
}

func TestResolve(t *testing.T) {
	tests := []struct {
		name    string
		targets []devices.Target
		want    []string
	}{
		{"named", []devices.Target{target("@alice:x", "PHONE", "1")}, []string{"@alice:x/PHONE=1"}},
		{"all", []devices.Target{target("@alice:x", "*", "1")}, []string{"@alice:x/LAPTOP=1", "@alice:x/PHONE=1"}},
		{"named beside all", []devices.Target{target("@alice:x", "*", "1"), target("@alice:x", "PHONE", "2")},
			[]string{"@alice:x/LAPTOP=1", "@alice:x/PHONE=2"}},
		{"named before all", []devices.Target{target("@alice:x", "LAPTOP", "2"), target("@alice:x", "*", "1")},
			[]string{"@alice:x/LAPTOP=2", "@alice:x/PHONE=1"}},
		{"unknown beside all", []devices.Target{target("@alice:x", "*", "1"), target("@alice:x", "TABLET", "2")},
			[]string{"@alice:x/LAPTOP=1", "@alice:x/PHONE=1"}},
		{"unknown device", []devices.Target{target("@alice:x", "TABLET", "1"), target("@alice:x", "", "2"), target("@bob:x", "PHONE", "3")},
			[]string{"@bob:x/PHONE=3"}},
		{"unknown user", []devices.Target{target("@eve:x", "*", "1"), target("@eve:x", "PHONE", "2"), target("@bob:x", "PHONE", "3")},
			[]string{"@bob:x/PHONE=3"}},
		{"of another user", []devices.Target{target("@bob:x", "LAPTOP", "1")}, nil},
		{"same ID of two users", []devices.Target{target("@alice:x", "PHONE", "1"), target("@bob:x", "PHONE", "2")},
			[]string{"@alice:x/PHONE=1", "@bob:x/PHONE=2"}},
		{"none", nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, _ := newDirectory(t)
			for range 2 { // from the host and from the cache
				r := resolve(t, d, test.targets...)
				wantCopies(t, r, test.want...)
				if !r.Current() {
					t.Error("the resolution is not current")
				}
			}
		})
	}
}

func TestCacheSparesTheHost(t *testing.T) {
	d, h := newDirectory(t)
	resolve(t, d, target("@alice:x", "*", "1"), target("@bob:x", "PHONE", "1"), target("@eve:x", "*", "1"))
	if whole, owners := h.asked(); whole != 3 || owners != 0 {
		t.Errorf("the host was asked %d and %d times, want 3 and 0", whole, owners)
	}
	wantCopies(t, resolve(t, d, target("@alice:x", "LAPTOP", "2"), target("@bob:x", "*", "2"), target("@eve:x", "PHONE", "2")),
		"@alice:x/LAPTOP=2", "@bob:x/PHONE=2")
	if whole, owners := h.asked(); whole != 0 || owners != 0 {
		t.Errorf("the host was asked %d and %d times in spite of the cache", whole, owners)
	}
}

func TestObserveTellsWhatTheCacheKnew(t *testing.T) {
	d, h := newDirectory(t)
	var hits, misses int
	d.Observe = func(hit, miss int) { hits, misses = hits+hit, misses+miss }
	many := manyUsers(h, 20)
	resolve(t, d, append(many, target("@alice:x", "*", "1"))...)
	if hits != 0 || misses != 21 {
		t.Errorf("at first there are %d hits and %d misses", hits, misses)
	}
	resolve(t, d, target("@alice:x", "*", "1"), target("@bob:x", "*", "1"))
	if hits != 1 || misses != 22 {
		t.Errorf("then there are %d hits and %d misses", hits, misses)
	}
}

func TestChangedForgets(t *testing.T) {
	d, h := newDirectory(t)
	before := resolve(t, d, target("@alice:x", "*", "1"), target("@bob:x", "*", "1"))

	d.Changed("@alice:x")
	if before.Current() {
		t.Error("the resolution is current although a device changes")
	}
	half := resolve(t, d, target("@alice:x", "*", "2")) // while the host makes the device
	h.set("@alice:x", "PHONE", "TABLET")
	d.Changed("@alice:x")
	if half.Current() {
		t.Error("a resolution made half way through the change is current")
	}

	h.asked()
	r := resolve(t, d, target("@alice:x", "*", "3"))
	wantCopies(t, r, "@alice:x/PHONE=3", "@alice:x/TABLET=3")
	if !r.Current() {
		t.Error("a resolution made after the change is not current")
	}
	if whole, _ := h.asked(); whole != 1 {
		t.Errorf("the host was asked %d times, want once", whole)
	}
}

// The host may show a device to others before the call that creates it returns.
func TestCacheIsNotBelievedDuringAChange(t *testing.T) {
	d, h := newDirectory(t)
	resolve(t, d, target("@alice:x", "*", "1"))
	failure := errors.New("of the change")
	err := d.Change("@alice:x", func() error {
		for _, deviceIDs := range [][]string{{"PHONE"}, {"PHONE", "TABLET"}} {
			h.set("@alice:x", deviceIDs...)
			if got := copies(resolve(t, d, target("@alice:x", "*", "2"))); len(got) != len(deviceIDs) {
				t.Errorf("during the change the copies are %v, the devices %v", got, deviceIDs)
			}
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Errorf("the error is %v, want that of the change", err)
	}
	h.asked()
	for range 2 {
		wantCopies(t, resolve(t, d, target("@alice:x", "*", "3")), "@alice:x/PHONE=3", "@alice:x/TABLET=3")
	}
	if whole, _ := h.asked(); whole != 1 {
		t.Errorf("after the change the host was asked %d times, want once", whole)
	}
}

func TestNoneDeleted(t *testing.T) {
	d, _ := newDirectory(t)
	alice, bob := d.NoneDeleted("@alice:x"), d.NoneDeleted("@bob:x")
	d.Changed("@alice:x")
	if !alice() || !bob() {
		t.Error("a change is taken for a deletion")
	}
	d.Deleted("@alice:x")
	if alice() {
		t.Error("a deletion is not noticed")
	}
	if !d.NoneDeleted("@alice:x")() {
		t.Error("a deletion is noticed by what began after it")
	}
	noticed := 0
	for i := range 1000 {
		other := d.NoneDeleted(fmt.Sprintf("@user%d:x", i))
		d.Deleted("@alice:x")
		if !other() {
			noticed++
		}
	}
	if noticed > 50 {
		t.Errorf("a deletion of one user's device is taken for that of %d others of 1000", noticed)
	}
}

func TestLookUpThatRacesWithAChangeIsNotCached(t *testing.T) {
	d, h := newDirectory(t)
	answered, proceed := make(chan struct{}), make(chan struct{})
	h.answering = func(string) {
		answered <- struct{}{}
		<-proceed
	}
	type answer struct {
		r   devices.Resolution
		err error
	}
	done := make(chan answer)
	go func() {
		r, err := d.Resolve(t.Context(), []devices.Target{target("@alice:x", "*", "1")})
		done <- answer{r, err}
	}()
	<-answered // with the devices before the change
	d.Changed("@alice:x")
	h.set("@alice:x", "TABLET")
	d.Changed("@alice:x")
	h.mu.Lock()
	h.answering = nil
	h.mu.Unlock()
	close(proceed)

	late := <-done
	if late.err != nil {
		t.Fatal(late.err)
	}
	wantCopies(t, late.r, "@alice:x/LAPTOP=1", "@alice:x/PHONE=1")
	if late.r.Current() {
		t.Error("the resolution is current although a device changed during the look-up")
	}
	r := resolve(t, d, target("@alice:x", "*", "2"))
	wantCopies(t, r, "@alice:x/TABLET=2")
	if !r.Current() {
		t.Error("the resolution after the change is not current")
	}
}

func TestFailureIsNotCached(t *testing.T) {
	d, h := newDirectory(t)
	away := errors.New("the database is away")
	h.fail(away)
	one := []devices.Target{target("@alice:x", "*", "1")}
	for name, targets := range map[string][]devices.Target{"one": one, "many": manyUsers(h, 20)} {
		if r, err := d.Resolve(t.Context(), targets); !errors.Is(err, away) || len(r.Copies) != 0 {
			t.Errorf("%s: %d copies, error %v", name, len(r.Copies), err)
		}
	}
	h.fail(nil)
	wantCopies(t, resolve(t, d, one...), "@alice:x/LAPTOP=1", "@alice:x/PHONE=1")
	if r := resolve(t, d, manyUsers(h, 20)...); len(r.Copies) != 20 {
		t.Errorf("%d copies, want 20", len(r.Copies))
	}
}

// manyUsers makes n users with a device each, and names each device and one that does not exist.
func manyUsers(h *host, n int) []devices.Target {
	var targets []devices.Target
	for i := range n {
		userID := fmt.Sprintf("@user%d:x", i)
		h.set(userID, fmt.Sprint("D", i), fmt.Sprint("OTHER", i))
		targets = append(targets, target(userID, fmt.Sprint("D", i), "1"), target(userID, fmt.Sprint("GONE", i), "2"))
	}
	return targets
}

func TestManyUsersAreLookedUpTogether(t *testing.T) {
	const users = 600
	d, h := newDirectory(t)
	r := resolve(t, d, manyUsers(h, users)...)
	var want []string
	for i := range users {
		want = append(want, fmt.Sprintf("@user%d:x/D%d=1", i, i))
	}
	slices.Sort(want)
	wantCopies(t, r, want...)
	if !r.Current() {
		t.Error("the resolution is not current")
	}
	for _, deviceIDs := range h.owners {
		if len(deviceIDs) > 500 { // SQLite takes 999 variables
			t.Errorf("%d devices were looked up at once", len(deviceIDs))
		}
	}
	if whole, owners := h.asked(); whole != 0 || owners != 3 {
		t.Errorf("for %d devices of %d users the host was asked %d and %d times, want 0 and 3", 2*users, users, whole, owners)
	}
	d.Changed("@user7:x")
	if r.Current() {
		t.Error("the resolution is current although a device changed")
	}
}

func TestDeviceIDOfSeveralUsers(t *testing.T) {
	d, h := newDirectory(t)
	targets := manyUsers(h, 20)
	// DeviceOwners names one owner for each of these, so for the others it says nothing.
	h.set("@user3:x", "D3", "SHARED")
	h.set("@user4:x", "SHARED")
	h.set("@zoe:x", "SHARED", "D5")
	targets = append(targets, target("@user3:x", "SHARED", "3"), target("@user4:x", "SHARED", "3"), target("@zoe:x", "SHARED", "3"))
	r := resolve(t, d, targets...)
	got := copies(r)
	for _, want := range []string{"@user3:x/D3=1", "@user3:x/SHARED=3", "@user4:x/SHARED=3", "@zoe:x/SHARED=3", "@user5:x/D5=1"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing", want)
		}
	}
	if len(got) != 22 { // the 20 but D4, and the 3
		t.Errorf("the copies are %v", got)
	}
	if whole, owners := h.asked(); whole != 3 || owners != 1 {
		t.Errorf("the host was asked %d and %d times, want 3 and 1", whole, owners)
	}
}

func TestManyUsersBesideAll(t *testing.T) {
	d, h := newDirectory(t)
	r := resolve(t, d, append(manyUsers(h, 20), target("@user1:x", "*", "9"), target("@alice:x", "*", "9"))...)
	got := copies(r)
	for _, want := range []string{"@user1:x/D1=1", "@user1:x/OTHER1=9", "@alice:x/PHONE=9", "@user2:x/D2=1"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing", want)
		}
	}
	if len(got) != 23 {
		t.Errorf("the copies are %v", got)
	}
}

// A host on SQLite lets a client choose an ID that PostgreSQL can't hold, or that no index can.
func TestDevicesThatCannotBeStoredAreSkipped(t *testing.T) {
	d, h := newDirectory(t)
	long := strings.Repeat("D", 2000)
	h.set("@alice:x", "PHONE", long, "\xff", "a\x00b")
	wantCopies(t, resolve(t, d, target("@alice:x", "*", "1"), target("@alice:x", long, "2")), "@alice:x/PHONE=1")
	if r := resolve(t, d, target("@alice:x", long, "2"), target("@alice:x", "\xff", "2")); len(r.Copies) != 0 {
		t.Errorf("the copies are %v", copies(r))
	}
}

func TestDeviceIDWithNULIsNotAskedFor(t *testing.T) {
	d, h := newDirectory(t)
	targets := append(manyUsers(h, 20), target("@user1:x", "D\x00", "3"), target("@alice:x", "\x00", "3"))
	if r := resolve(t, d, targets...); len(r.Copies) != 20 {
		t.Errorf("%d copies, want 20", len(r.Copies))
	}
	for _, deviceID := range slices.Concat(h.owners...) {
		if slices.Contains([]byte(deviceID), 0) {
			t.Errorf("the host was asked for %q", deviceID)
		}
	}
}

// TestConcurrentChanges checks the promise that the writer relies on: a resolution that is
// current at a moment when no change is under way has the devices of that moment.
func TestConcurrentChanges(t *testing.T) {
	d, h := newDirectory(t)
	const rounds = 300
	var state sync.RWMutex // held for writing during a change
	var group sync.WaitGroup
	group.Go(func() {
		for i := range rounds {
			state.Lock()
			d.Changed("@alice:x")
			h.set("@alice:x", fmt.Sprint("DEVICE", i))
			d.Changed("@alice:x")
			state.Unlock()
		}
	})
	for range 4 {
		group.Go(func() {
			for range rounds {
				r, err := d.Resolve(t.Context(), []devices.Target{target("@alice:x", "*", "1"), target("@bob:x", "*", "1")})
				if err != nil {
					t.Error(err)
					return
				}
				state.RLock()
				h.mu.Lock()
				want := len(h.devices["@alice:x"]) + len(h.devices["@bob:x"])
				for _, c := range r.Copies {
					if !slices.Contains(h.devices[c.UserID], c.DeviceID) {
						want = -1
					}
				}
				h.mu.Unlock()
				if r.Current() && len(r.Copies) != want {
					t.Errorf("%v is current, but not what exists", copies(r))
				}
				state.RUnlock()
			}
		})
	}
	group.Wait()
}
