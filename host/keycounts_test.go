package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"testing"
	"testing/quick"

	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// keyStore is a user API that counts keys by "user device", and how often it is asked.
type keyStore struct {
	userapi.UserInternalAPI
	counts map[string]int
	asked  int
	err    *userapi.KeyError
	then   func() // called between an answer and its return
	during func() // called by each change between what it does and its return
}

func (s *keyStore) QueryOneTimeKeys(_ context.Context, req *userapi.QueryOneTimeKeysRequest, res *userapi.QueryOneTimeKeysResponse) error {
	s.asked++
	res.Error = s.err
	res.Count = userapi.OneTimeKeysCount{
		UserID: req.UserID, DeviceID: req.DeviceID, KeyCount: map[string]int{"signed_curve25519": s.counts[req.UserID+" "+req.DeviceID]},
	}
	if s.then != nil {
		s.then()
	}
	return nil
}

func (s *keyStore) set(userID, deviceID string, n int) {
	s.counts[userID+" "+deviceID] = n
	if s.during != nil {
		s.during()
	}
}

func (s *keyStore) PerformUploadKeys(_ context.Context, req *userapi.PerformUploadKeysRequest, _ *userapi.PerformUploadKeysResponse) error {
	s.set(req.UserID, req.DeviceID, 50)
	return errors.New("after it was stored")
}

func (s *keyStore) PerformClaimKeys(context.Context, *userapi.PerformClaimKeysRequest, *userapi.PerformClaimKeysResponse) {
	s.set("@bob:x", "PHONE", 49)
}

func (s *keyStore) PerformDeviceDeletion(context.Context, *userapi.PerformDeviceDeletionRequest, *userapi.PerformDeviceDeletionResponse) error {
	s.set("@bob:x", "PHONE", 0)
	return nil
}

func (s *keyStore) PerformAccountDeactivation(context.Context, *userapi.PerformAccountDeactivationRequest, *userapi.PerformAccountDeactivationResponse) error {
	s.set("@bob:x", "PHONE", 0)
	return nil
}

func (s *keyStore) PerformPasswordUpdate(context.Context, *userapi.PerformPasswordUpdateRequest, *userapi.PerformPasswordUpdateResponse) error {
	s.set("@bob:x", "PHONE", 0)
	return nil
}

func (s *keyStore) PerformDeviceCreation(context.Context, *userapi.PerformDeviceCreationRequest, *userapi.PerformDeviceCreationResponse) error {
	s.set("@bob:x", "PHONE", 7)
	return nil
}

type counting struct {
	*testing.T
	store *keyStore
	api   userapi.UserInternalAPI
	keys  countedKeys
}

func newCounting(t *testing.T) *counting {
	t.Helper()
	store := &keyStore{counts: map[string]int{"@bob:x PHONE": 5, "@bob:x LAPTOP": 6, "@alice:x PHONE": 8}}
	d := newTestHost(t, &fakeStore{})
	d.config.Global.ServerName = "x"
	api := d.WrapUserAPI(store)
	return &counting{t, store, api, countedKeys{api, d.keys}}
}

func (c *counting) want(userID, deviceID string, n, queries int) {
	c.Helper()
	before := c.store.asked
	var res userapi.QueryOneTimeKeysResponse
	err := c.keys.QueryOneTimeKeys(c.Context(), &userapi.QueryOneTimeKeysRequest{UserID: userID, DeviceID: deviceID}, &res)
	want := map[string]int{"signed_curve25519": n}
	if err != nil || res.Count.UserID != userID || res.Count.DeviceID != deviceID || !maps.Equal(res.Count.KeyCount, want) {
		c.Errorf("%+v, %v, want %v", res.Count, err, want)
	}
	if asked := c.store.asked - before; asked != queries {
		c.Errorf("the host was asked %d times, want %d", asked, queries)
	}
	res.Count.KeyCount["signed_curve25519"]++ // the map is the caller's
}

func TestKeysAreCountedOnce(t *testing.T) {
	c := newCounting(t)
	for queries := range 3 {
		c.want("@bob:x", "PHONE", 5, (3-queries)/3)
		c.want("@bob:x", "LAPTOP", 6, (3-queries)/3)
		c.want("@alice:x", "PHONE", 8, (3-queries)/3)
	}
}

// wholeAnswer is a user API with an answer that has something in every field.
type wholeAnswer struct {
	userapi.UserInternalAPI
	answer userapi.QueryOneTimeKeysResponse
	asked  int
}

func (w *wholeAnswer) QueryOneTimeKeys(_ context.Context, _ *userapi.QueryOneTimeKeysRequest, res *userapi.QueryOneTimeKeysResponse) error {
	w.asked++
	*res = copyOf(w.answer)
	return nil
}

// Newer versions of the host say more than the counts.
func TestAllOfAnAnswerIsRemembered(t *testing.T) {
	check := func(answer userapi.QueryOneTimeKeysResponse) bool {
		answer.Error = nil
		counts, err := newKeyCounts()
		if err != nil {
			t.Fatal(err)
		}
		host := &wholeAnswer{answer: answer}
		keys := countedKeys{host, counts}
		same := true
		for range 3 {
			var res userapi.QueryOneTimeKeysResponse
			err := keys.QueryOneTimeKeys(t.Context(), &userapi.QueryOneTimeKeysRequest{UserID: answer.Count.UserID, DeviceID: answer.Count.DeviceID}, &res)
			same = same && err == nil && reflect.DeepEqual(res, answer)
			clear(res.Count.KeyCount) // the map is the caller's
		}
		return same && host.asked == 1
	}
	if err := quick.Check(check, nil); err != nil {
		t.Error(err)
	}
}

// keyChanges are all ways in which the host changes keys of @bob:x PHONE, and how many are there then.
func (c *counting) keyChanges() map[string]struct {
	then int
	call func()
} {
	phone := "PHONE"
	return map[string]struct {
		then int
		call func()
	}{
		"upload": {50, func() {
			_ = c.api.PerformUploadKeys(c.Context(), &userapi.PerformUploadKeysRequest{UserID: "@bob:x", DeviceID: phone}, nil)
		}},
		"claim": {49, func() {
			c.api.PerformClaimKeys(c.Context(), &userapi.PerformClaimKeysRequest{
				OneTimeKeys: map[string]map[string]string{"@carol:x": {}, "@bob:x": {phone: "signed_curve25519"}},
			}, nil)
		}},
		"deletion": {0, func() {
			_ = c.api.PerformDeviceDeletion(c.Context(), &userapi.PerformDeviceDeletionRequest{UserID: "@bob:x"}, nil)
		}},
		"deactivation": {0, func() {
			_ = c.api.PerformAccountDeactivation(c.Context(), &userapi.PerformAccountDeactivationRequest{Localpart: "bob"}, nil)
		}},
		"new password": {0, func() {
			_ = c.api.PerformPasswordUpdate(c.Context(), &userapi.PerformPasswordUpdateRequest{Localpart: "bob", LogoutDevices: true}, nil)
		}},
		"creation": {7, func() {
			_ = c.api.PerformDeviceCreation(c.Context(), &userapi.PerformDeviceCreationRequest{Localpart: "bob", DeviceID: &phone}, nil)
		}},
	}
}

func TestChangedKeysCountAtOnce(t *testing.T) {
	for name := range newCounting(t).keyChanges() {
		t.Run(name, func(t *testing.T) {
			c := newCounting(t)
			change := c.keyChanges()[name]
			c.want("@bob:x", "PHONE", 5, 1)
			c.want("@alice:x", "PHONE", 8, 1)
			// Others may see what it does before it returns; what they count then may be counted too early.
			c.store.during = func() {
				c.want("@bob:x", "PHONE", change.then, 1)
				c.want("@bob:x", "PHONE", change.then, 1)
			}
			change.call()
			c.want("@bob:x", "PHONE", change.then, 1)
			c.want("@bob:x", "PHONE", change.then, 0)
			c.want("@alice:x", "PHONE", 8, 0)
			if n := len(c.keys.counts.underWay); n != 0 {
				t.Errorf("%d users are said to be changed", n)
			}
		})
	}
}

func TestKeysThatChangeWhileTheyAreCountedAreNotKept(t *testing.T) {
	for name := range newCounting(t).keyChanges() {
		t.Run(name, func(t *testing.T) {
			c := newCounting(t)
			change := c.keyChanges()[name]
			c.store.then = change.call
			c.want("@bob:x", "PHONE", 5, 1)
			c.store.then = nil
			c.want("@bob:x", "PHONE", change.then, 1)
		})
	}
}

func TestKeysThatCannotBeCounted(t *testing.T) {
	c := newCounting(t)
	c.store.err = &userapi.KeyError{Err: "away"}
	for range 2 {
		var res userapi.QueryOneTimeKeysResponse
		if err := c.keys.QueryOneTimeKeys(t.Context(), &userapi.QueryOneTimeKeysRequest{UserID: "@bob:x", DeviceID: "PHONE"}, &res); err != nil || res.Error == nil {
			t.Error(res, err)
		}
	}
	c.store.err = nil
	c.want("@bob:x", "PHONE", 5, 1)
}

func TestMemoryOfKeyCounts(t *testing.T) {
	c := newCounting(t)
	for n := range keyCountsKept + 1 {
		c.want(fmt.Sprintf("@%d:x", n), "PHONE", 0, 1)
	}
	if n := c.keys.counts.known.Len(); n != keyCountsKept {
		t.Errorf("the counts of %d users are kept", n)
	}
	c.want("@0:x", "PHONE", 0, 1)
}
