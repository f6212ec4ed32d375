package host

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/mux"
	userapi "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/util"
)

// accounts is a user API that keeps devices by their tokens, and counts the look-ups.
type accounts struct {
	userapi.UserInternalAPI
	answered func() // called by a look-up between its answer and its return, if set
	changed  func() // the same for changes
	err      error  // returned by each change, which is carried out all the same

	mu      sync.Mutex
	devices map[string]userapi.Device
	asked   int
}

func newAccounts() *accounts {
	a := &accounts{devices: make(map[string]userapi.Device)}
	for _, id := range []string{"PHONE", "LAPTOP"} {
		a.devices[id] = userapi.Device{UserID: "@bob:x", ID: id, AccessToken: id, SessionID: 7, AccountType: userapi.AccountTypeUser}
	}
	return a
}

func (a *accounts) QueryAccessToken(_ context.Context, req *userapi.QueryAccessTokenRequest, res *userapi.QueryAccessTokenResponse) error {
	a.mu.Lock()
	a.asked++
	device, ok := a.devices[req.AccessToken]
	a.mu.Unlock()
	if ok {
		res.Device = &device
	}
	if a.answered != nil {
		a.answered()
	}
	return nil
}

func (a *accounts) change(remove func(d userapi.Device) bool, add ...userapi.Device) error {
	a.mu.Lock()
	for token, d := range a.devices {
		if remove(d) {
			delete(a.devices, token)
		}
	}
	for _, d := range add {
		a.devices[d.AccessToken] = d
	}
	a.mu.Unlock()
	if a.changed != nil {
		a.changed()
	}
	return a.err
}

func (a *accounts) PerformDeviceCreation(_ context.Context, req *userapi.PerformDeviceCreationRequest, _ *userapi.PerformDeviceCreationResponse) error {
	n := userapi.Device{UserID: "@" + req.Localpart + ":x", ID: *req.DeviceID, AccessToken: req.AccessToken}
	return a.change(func(d userapi.Device) bool { return d.UserID == n.UserID && d.ID == n.ID }, n)
}

func (a *accounts) PerformDeviceDeletion(_ context.Context, req *userapi.PerformDeviceDeletionRequest, _ *userapi.PerformDeviceDeletionResponse) error {
	return a.change(func(d userapi.Device) bool {
		return d.UserID == req.UserID && d.ID != req.ExceptDeviceID && (len(req.DeviceIDs) == 0 || slices.Contains(req.DeviceIDs, d.ID))
	})
}

func (a *accounts) PerformAccountDeactivation(_ context.Context, req *userapi.PerformAccountDeactivationRequest, _ *userapi.PerformAccountDeactivationResponse) error {
	return a.change(func(d userapi.Device) bool { return d.UserID == "@"+req.Localpart+":x" })
}

func (a *accounts) PerformPasswordUpdate(_ context.Context, req *userapi.PerformPasswordUpdateRequest, _ *userapi.PerformPasswordUpdateResponse) error {
	return a.change(func(d userapi.Device) bool { return req.LogoutDevices && d.UserID == "@"+req.Localpart+":x" })
}

func (a *accounts) lookups() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// tokenHost returns a host on the accounts, and the user API that the host's routes get.
func tokenHost(t *testing.T, a *accounts) (*Dendrite, userapi.UserInternalAPI) {
	t.Helper()
	d := newTestHost(t, &fakeStore{})
	d.config.Global.ServerName = "x"
	return d, d.WrapUserAPI(a)
}

func lookUp(t *testing.T, api userapi.QueryAcccessTokenAPI, token string) *userapi.Device {
	t.Helper()
	var res userapi.QueryAccessTokenResponse
	if err := api.QueryAccessToken(t.Context(), &userapi.QueryAccessTokenRequest{AccessToken: token}, &res); err != nil || res.Err != "" {
		t.Fatal(err, res.Err)
	}
	if res.Device != nil && res.Device.AccessToken != token {
		t.Errorf("the device has the token %q, want %q", res.Device.AccessToken, token)
	}
	return res.Device
}

type answeringPool struct{}

func (answeringPool) OnIncomingSyncRequest(*http.Request, *userapi.Device) util.JSONResponse {
	return util.JSONResponse{Code: http.StatusOK, JSON: struct{}{}}
}

// Many requests to both routes cost one look-up, those to the admin API one each.
func TestLookUpsOfRequests(t *testing.T) {
	a := newAccounts()
	d, _ := tokenHost(t, a)
	router := mux.NewRouter().UseEncodedPath()
	d.addSendToDeviceRoute(router)
	d.handleSync(newSyncRoute(router), answeringPool{})
	d.addAdminRoutes(router)
	want := func(n, status int, method, path string) {
		t.Helper()
		before := a.lookups()
		for range 10 {
			req := httptest.NewRequest(method, path, strings.NewReader("no JSON"))
			req.Header.Set("Authorization", "Bearer PHONE")
			w := httptest.NewRecorder()
			router.ServeHTTP(w, req)
			if w.Code != status {
				t.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		if got := a.lookups() - before; got != n {
			t.Errorf("%s: 10 requests cost %d look-ups, want %d", path, got, n)
		}
	}
	want(1, http.StatusBadRequest, http.MethodPut, "/v3/sendToDevice/m.test/1")
	want(0, http.StatusOK, http.MethodGet, "/v3/sync?since=s1")
	want(10, http.StatusOK, http.MethodGet, "/v3/sync?since=s1&user_id=@bob:x")
	want(10, http.StatusForbidden, http.MethodGet, adminPrefix+"/queues")
}

// endings are all the ways by which the host ends a token. userapi/internal/user_api.go and the tables behind it have no others.
func endings() map[string]func(ctx context.Context, api userapi.UserInternalAPI) error {
	id := "PHONE"
	return map[string]func(ctx context.Context, api userapi.UserInternalAPI) error{
		"deletion": func(ctx context.Context, api userapi.UserInternalAPI) error {
			req := &userapi.PerformDeviceDeletionRequest{UserID: "@bob:x", DeviceIDs: []string{id}}
			return api.PerformDeviceDeletion(ctx, req, &userapi.PerformDeviceDeletionResponse{})
		},
		"deletion of all others": func(ctx context.Context, api userapi.UserInternalAPI) error {
			req := &userapi.PerformDeviceDeletionRequest{UserID: "@bob:x", ExceptDeviceID: "LAPTOP"}
			return api.PerformDeviceDeletion(ctx, req, &userapi.PerformDeviceDeletionResponse{})
		},
		"deletion of all": func(ctx context.Context, api userapi.UserInternalAPI) error {
			return api.PerformDeviceDeletion(ctx, &userapi.PerformDeviceDeletionRequest{UserID: "@bob:x"}, &userapi.PerformDeviceDeletionResponse{})
		},
		"deactivation": func(ctx context.Context, api userapi.UserInternalAPI) error {
			return api.PerformAccountDeactivation(ctx, &userapi.PerformAccountDeactivationRequest{Localpart: "bob"}, &userapi.PerformAccountDeactivationResponse{})
		},
		"new password": func(ctx context.Context, api userapi.UserInternalAPI) error {
			req := &userapi.PerformPasswordUpdateRequest{Localpart: "bob", LogoutDevices: true}
			return api.PerformPasswordUpdate(ctx, req, &userapi.PerformPasswordUpdateResponse{})
		},
		"new token": func(ctx context.Context, api userapi.UserInternalAPI) error {
			req := &userapi.PerformDeviceCreationRequest{Localpart: "bob", DeviceID: &id, AccessToken: "new"}
			return api.PerformDeviceCreation(ctx, req, &userapi.PerformDeviceCreationResponse{})
		},
	}
}

// A token that was remembered is asked for again while the call that ends it is under way, and is gone when that returns, with
// whatever error.
func TestEndedTokenIsForgotten(t *testing.T) {
	for name, end := range endings() {
		for _, failure := range []error{nil, errors.New("after the fact")} {
			t.Run(fmt.Sprint(name, ", ", failure), func(t *testing.T) {
				a := newAccounts()
				d, api := tokenHost(t, a)
				tokens := d.rememberedTokens()
				for range 2 {
					if lookUp(t, tokens, "PHONE") == nil || lookUp(t, tokens, "LAPTOP") == nil {
						t.Fatal("a good token is refused")
					}
				}
				if a.lookups() != 2 {
					t.Fatalf("%d look-ups for 2 tokens", a.lookups())
				}
				a.err = failure
				during := false
				a.changed = func() {
					during = true
					if lookUp(t, tokens, "PHONE") != nil {
						t.Error("the token is good although the device is deleted")
					}
				}
				if err := end(t.Context(), api); !errors.Is(err, failure) {
					t.Fatal(err)
				}
				if !during || lookUp(t, tokens, "PHONE") != nil {
					t.Error("the token is good after its end")
				}
				for token := range a.devices {
					if lookUp(t, tokens, token) == nil {
						t.Errorf("the token %s is refused", token)
					}
				}
			})
		}
	}
}

// An answer that was read before a change and arrives after it is no answer to later requests.
func TestLookUpThatRacesWithAnEndIsNotRemembered(t *testing.T) {
	for name, end := range endings() {
		t.Run(name, func(t *testing.T) {
			a := newAccounts()
			d, api := tokenHost(t, a)
			tokens := d.rememberedTokens()
			a.answered = func() {
				a.answered = nil
				if err := end(t.Context(), api); err != nil {
					t.Error(err)
				}
			}
			if lookUp(t, tokens, "PHONE") == nil {
				t.Error("the answer from before the end is lost")
			}
			if lookUp(t, tokens, "PHONE") != nil {
				t.Error("the token is good after its end")
			}
		})
	}
}

// answers is one answer to whatever token.
type answers struct {
	res userapi.QueryAccessTokenResponse
	err error
	n   int
}

func (a *answers) QueryAccessToken(_ context.Context, req *userapi.QueryAccessTokenRequest, res *userapi.QueryAccessTokenResponse) error {
	a.n++
	*res = a.res
	if res.Device != nil {
		device := *res.Device
		device.AccessToken = req.AccessToken
		res.Device = &device
	}
	return a.err
}

// remember returns a cache before the answers of which every one holds.
func remember(t *testing.T, a userapi.QueryAcccessTokenAPI) remembering {
	t.Helper()
	cache, err := newTokenCache(func() func(string) func() bool {
		return func(string) func() bool { return func() bool { return true } }
	})
	if err != nil {
		t.Fatal(err)
	}
	return remembering{a, cache}
}

func TestOnlyGoodTokensAreRemembered(t *testing.T) {
	bob := &userapi.Device{UserID: "@bob:x", ID: "PHONE"}
	for name, test := range map[string]struct {
		answers
		req  userapi.QueryAccessTokenRequest
		want int
	}{
		"good":                           {answers{res: userapi.QueryAccessTokenResponse{Device: bob}}, userapi.QueryAccessTokenRequest{AccessToken: "t"}, 1},
		"unknown":                        {answers{}, userapi.QueryAccessTokenRequest{AccessToken: "t"}, 3},
		"refused":                        {answers{res: userapi.QueryAccessTokenResponse{Device: bob, Err: "forbidden: no"}}, userapi.QueryAccessTokenRequest{AccessToken: "t"}, 3},
		"not found out":                  {answers{res: userapi.QueryAccessTokenResponse{Device: bob}, err: errors.New("away")}, userapi.QueryAccessTokenRequest{AccessToken: "t"}, 3},
		"of an application service user": {answers{res: userapi.QueryAccessTokenResponse{Device: bob}}, userapi.QueryAccessTokenRequest{AccessToken: "t", AppServiceUserID: "@bob:x"}, 3},
	} {
		api := remember(t, &test.answers)
		for range 3 {
			var res userapi.QueryAccessTokenResponse
			if err := api.QueryAccessToken(t.Context(), &test.req, &res); !errors.Is(err, test.err) || res.Err != test.res.Err || (res.Device == nil) != (test.res.Device == nil) {
				t.Errorf("%s: the answer is %+v, %v", name, res, err)
			}
		}
		if test.n != test.want {
			t.Errorf("%s: the host was asked %d times, want %d", name, test.n, test.want)
		}
	}
}

func TestRememberedDeviceIsTheCallersOwn(t *testing.T) {
	api := remember(t, newAccounts())
	for range 3 {
		device := lookUp(t, api, "PHONE")
		if want := (userapi.Device{UserID: "@bob:x", ID: "PHONE", AccessToken: "PHONE", SessionID: 7, AccountType: userapi.AccountTypeUser}); *device != want {
			t.Errorf("the device is %+v, want %+v", *device, want)
		}
		*device = userapi.Device{UserID: "@eve:x"}
	}
	for _, known := range api.cache.known.Values() {
		if known.device.AccessToken != "" {
			t.Error("an access token is kept")
		}
	}
}

func TestTokensAreRememberedForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccounts()
		api := remember(t, a)
		for _, step := range []struct {
			after time.Duration
			want  int
		}{{0, 1}, {tokenLifetime - 1, 1}, {1, 2}, {tokenLifetime - 1, 2}, {tokenLifetime, 3}} {
			time.Sleep(step.after)
			lookUp(t, api, "PHONE")
			if a.asked != step.want {
				t.Errorf("%v later the host was asked %d times, want %d", step.after, a.asked, step.want)
			}
		}
	})
}

func TestRememberedTokensAreBounded(t *testing.T) {
	api := remember(t, &answers{res: userapi.QueryAccessTokenResponse{Device: &userapi.Device{UserID: "@bob:x"}}})
	for i := range tokensKept + 100 {
		lookUp(t, api, fmt.Sprint(i))
	}
	if n := api.cache.known.Len(); n != tokensKept {
		t.Errorf("%d tokens are remembered, want %d", n, tokensKept)
	}
}

// session is the one device of a user, which gets one token after the other. Its fields count tokens.
type session struct{ created, ending, ended atomic.Int64 }

// Whatever happens at once: a token that ended before a look-up is refused by it, and one that neither began after its beginning nor
// ended before its end is good.
func TestTokensUnderConcurrentChanges(t *testing.T) {
	const users, readers, rounds = 4, 4, 300
	a := newAccounts()
	d, api := tokenHost(t, a)
	tokens := d.rememberedTokens()
	token := func(user int, n int64) string { return fmt.Sprintf("%d/%d", user, n) }
	var changing, reading sync.WaitGroup
	var looked atomic.Int64
	done := make(chan struct{})
	ctx := t.Context()
	for user := range users {
		s := new(session)
		localpart, id := fmt.Sprintf("user%d", user), "PHONE"
		userID := "@" + localpart + ":x"
		create := func(n int64) error {
			req := &userapi.PerformDeviceCreationRequest{Localpart: localpart, DeviceID: &id, AccessToken: token(user, n)}
			return api.PerformDeviceCreation(ctx, req, &userapi.PerformDeviceCreationResponse{})
		}
		remove := []func() error{
			func() error { return nil }, // the next creation does
			func() error {
				return api.PerformDeviceDeletion(ctx, &userapi.PerformDeviceDeletionRequest{UserID: userID}, &userapi.PerformDeviceDeletionResponse{})
			},
			func() error {
				req := &userapi.PerformPasswordUpdateRequest{Localpart: localpart, LogoutDevices: true}
				return api.PerformPasswordUpdate(ctx, req, &userapi.PerformPasswordUpdateResponse{})
			},
			func() error {
				return api.PerformAccountDeactivation(ctx, &userapi.PerformAccountDeactivationRequest{Localpart: localpart}, &userapi.PerformAccountDeactivationResponse{})
			},
		}
		changing.Go(func() {
			for n := int64(1); n <= rounds; n++ {
				s.ending.Store(n - 1)
				way := n % int64(len(remove))
				if err := remove[way](); err != nil {
					t.Error(err)
				}
				if way != 0 {
					s.ended.Store(n - 1)
				}
				if err := create(n); err != nil {
					t.Error(err)
				}
				s.ended.Store(n - 1)
				s.created.Store(n)
				for before := looked.Load(); looked.Load() < before+readers; { // let them remember it
					time.Sleep(time.Microsecond)
				}
			}
		})
		for range readers {
			reading.Go(func() {
				for n := int64(0); ; n ^= 1 {
					select {
					case <-done:
						return
					default:
					}
					created, ended := s.created.Load(), s.ended.Load()
					number := max(1, created-n)
					good := lookUp(t, tokens, token(user, number)) != nil
					looked.Add(1)
					switch {
					case number <= ended && good:
						t.Errorf("the token %d of user %d is good after its end", number, user)
					case number <= created && number > s.ending.Load() && !good:
						t.Errorf("the token %d of user %d is refused", number, user)
					}
				}
			})
		}
	}
	changing.Wait()
	close(done)
	reading.Wait()
	if asked := int64(a.lookups()); looked.Load()-asked < users*rounds {
		t.Errorf("%d of %d look-ups came to the host: hardly any token was remembered", asked, looked.Load())
	}
}
