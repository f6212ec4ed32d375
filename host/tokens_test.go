package host

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/mux"
	userapi "github.com/matrix-org/dendrite/userapi/api"
)

const unrecognised = "M_UNRECOGNIZED" //nolint:misspell // as the specification has it

// tokenAPI answers every look-up of an access token alike.
type tokenAPI struct {
	userapi.UserInternalAPI
	answer userapi.QueryAccessTokenResponse
	err    error
}

func (a *tokenAPI) QueryAccessToken(_ context.Context, _ *userapi.QueryAccessTokenRequest, res *userapi.QueryAccessTokenResponse) error {
	*res = a.answer
	return a.err
}

// callAll sends a request to every route that looks up an access token by itself, and tells f of the answer.
func callAll(t *testing.T, api *tokenAPI, f func(name string, w *httptest.ResponseRecorder)) {
	t.Helper()
	d := newTestHost(t, &fakeStore{})
	var userAPI userapi.UserInternalAPI = api
	d.userAPI.Store(&userAPI)
	router := mux.NewRouter().UseEncodedPath()
	d.addAdminRoutes(router)
	d.addSendToDeviceRoute(router)
	call := func(name, method, path string) {
		req := httptest.NewRequest(method, path, strings.NewReader("no JSON"))
		req.Header.Set("Authorization", "Bearer token")
		w := httptest.NewRecorder()
		router.ServeHTTP(w, req)
		f(name, w)
	}
	for _, route := range d.module.AdminRoutes() {
		path := strings.NewReplacer("{userID}", "@a:x", "{deviceID}", "A", "{destination}", "x", "{position}", "1").Replace(route.Path)
		call(route.Name, route.Method, adminPrefix+path+"?unknown") // which nothing is looked up for
	}
	call("send_to_device", http.MethodPut, "/v3/sendToDevice/m.test/1")
}

func errcode(w *httptest.ResponseRecorder) (code, sentence string) {
	var answer struct{ ErrCode, Error string }
	_ = json.Unmarshal(w.Body.Bytes(), &answer)
	return answer.ErrCode, answer.Error
}

// Nothing of what the host's database has said before it failed counts.
func TestAccessTokenThatCanNotBeLookedUp(t *testing.T) {
	api := &tokenAPI{
		err:    errors.New("the database is away"),
		answer: userapi.QueryAccessTokenResponse{Device: &userapi.Device{UserID: "@admin:x", AccountType: userapi.AccountTypeAdmin}, Err: "forbidden: no"},
	}
	callAll(t, api, func(name string, w *httptest.ResponseRecorder) {
		code, sentence := errcode(w)
		if w.Code != http.StatusServiceUnavailable || code != "M_UNKNOWN" || !strings.HasSuffix(sentence, ".") || w.Header().Get("Retry-After") != "1" {
			t.Errorf("%s: %d %s %v", name, w.Code, w.Body, w.Header())
		}
	})
}

// Otherwise it is as in the host.
func TestWhoMayCall(t *testing.T) {
	user := func(kind userapi.AccountType) userapi.QueryAccessTokenResponse {
		return userapi.QueryAccessTokenResponse{Device: &userapi.Device{UserID: "@a:x", ID: "A", AccountType: kind}}
	}
	for name, test := range map[string]struct {
		answer      userapi.QueryAccessTokenResponse
		admin, send string // errcodes
		status      int    // of the admin API
	}{
		"nobody":                   {userapi.QueryAccessTokenResponse{}, "M_UNKNOWN_TOKEN", "M_UNKNOWN_TOKEN", 401},
		"a service for a stranger": {userapi.QueryAccessTokenResponse{Err: "forbidden: not its user"}, "M_FORBIDDEN", "M_FORBIDDEN", 403},
		"a guest":                  {user(userapi.AccountTypeGuest), "M_GUEST_ACCESS_FORBIDDEN", "M_NOT_JSON", 403},
		"a user":                   {user(userapi.AccountTypeUser), "M_FORBIDDEN", "M_NOT_JSON", 403},
		"a service":                {user(userapi.AccountTypeAppService), "M_FORBIDDEN", "M_NOT_JSON", 403},
		"an administrator":         {user(userapi.AccountTypeAdmin), unrecognised, "M_NOT_JSON", 400},
	} {
		callAll(t, &tokenAPI{answer: test.answer}, func(route string, w *httptest.ResponseRecorder) {
			want, status := test.admin, test.status
			if route == "send_to_device" {
				want, status = test.send, w.Code
			}
			if code, _ := errcode(w); code != want || w.Code != status {
				t.Errorf("%s, %s: %d %s, want %s", name, route, w.Code, w.Body, want)
			}
		})
	}
}
