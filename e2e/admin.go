package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"maunium.net/go/mautrix"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

// RegisterAdmin makes an administrator with one device.
func RegisterAdmin(t testing.TB, s *Server) *Client {
	t.Helper()
	c := newClient(t, s)
	target := s.URL + "/_synapse/admin/v1/register"
	var nonce struct{ Nonce string }
	rawJSON(t, http.MethodGet, target, nil, &nonce)
	name := unique("admin")
	mac := hmac.New(sha1.New, []byte(registrationSecret))
	_, _ = mac.Write([]byte(strings.Join([]string{nonce.Nonce, name, password, "admin"}, "\x00")))
	var res mautrix.RespRegister
	rawJSON(t, http.MethodPost, target, object{
		"nonce": nonce.Nonce, "username": name, "password": password, "admin": true, "mac": hex.EncodeToString(mac.Sum(nil)),
	}, &res)
	return c.as(res.UserID, res.DeviceID, res.AccessToken)
}

// rawJSON sends a request without an access token, which has to be answered with 200.
func rawJSON(t testing.TB, method, target string, body, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, bytes.NewReader(mustJSON(body)))
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: transport, Timeout: deadline}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode == http.StatusOK {
		err = json.Unmarshal(answer, into)
	}
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %d %s, %v", method, target, res.StatusCode, answer, err)
	}
}

const openAPIFile = "../docs/openapi.yaml"

var openAPI = sync.OnceValues(func() (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromFile(openAPIFile)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(loader.Context)
})

// AdminAPI sends calls to a server's admin API and holds every one, and its answer, against the documentation.
type AdminAPI struct {
	server *Server
	token  string
	// called has the calls that were sent and what they were answered.
	called map[string][]int
}

// NewAdminAPI returns one that sends an access token, or none if that is empty.
func NewAdminAPI(s *Server, token string) *AdminAPI {
	return &AdminAPI{s, token, map[string][]int{}}
}

// fillPath puts percent-encoded values into the path of a route.
func fillPath(path string, values map[string]string) string {
	for name, value := range values {
		path = strings.ReplaceAll(path, "{"+name+"}", url.PathEscape(value))
	}
	return path
}

// Call sends a call that has to be answered with the status, and decodes its answer.
func (a *AdminAPI) Call(t testing.TB, method, route string, values map[string]string, query string, status int, into any) {
	t.Helper()
	target := a.server.URL + admin.Prefix + fillPath(route, values)
	if query != "" {
		target += "?" + query
	}
	got := a.send(t, method, target)
	a.called[method+" "+route] = append(a.called[method+" "+route], got.Status)
	if got.Status != status {
		t.Fatalf("%s %s: want %d, got %v", method, target, status, got)
	}
	a.hold(t, method, route, values, target, got)
	if into != nil {
		if err := json.Unmarshal(got.Body, into); err != nil {
			t.Fatalf("%s %s: %v: %s", method, target, err, got.Body)
		}
	}
}

// Refused is Call for one that has to be refused.
func (a *AdminAPI) Refused(t testing.TB, method, route string, values map[string]string, query string, status int, errcode string) {
	t.Helper()
	var answer struct{ ErrCode string }
	a.Call(t, method, route, values, query, status, &answer)
	if answer.ErrCode != errcode {
		t.Errorf("%s %s %s: want %s, got %s", method, route, query, errcode, answer.ErrCode)
	}
}

// tlsTransport takes the certificates of servers, which are nobody's.
var tlsTransport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}

func (a *AdminAPI) send(t testing.TB, method, target string) Answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	through := transport
	if req.URL.Scheme == "https" {
		through = tlsTransport
	}
	res, err := (&http.Client{Transport: through, Timeout: deadline}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck
	if kind := res.Header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("%s %s is answered with %q", method, target, kind)
	}
	return readAnswer(t, res)
}

// hold compares a call and its answer with the documentation. The parameters are compared only where the server took them.
func (a *AdminAPI) hold(t testing.TB, method, route string, values map[string]string, target string, got Answer) {
	t.Helper()
	doc, err := openAPI()
	if err != nil {
		t.Fatal(err)
	}
	item := doc.Paths.Value(route)
	if item == nil || item.GetOperation(method) == nil {
		t.Fatalf("%s %s is not in %s", method, route, openAPIFile)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	input := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: values,
		Route: &routers.Route{Spec: doc, Path: route, PathItem: item, Method: method, Operation: item.GetOperation(method)},
		Options: &openapi3filter.Options{
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true, MultiError: true,
		},
	}
	if got.Status == http.StatusOK {
		if err = openapi3filter.ValidateRequest(t.Context(), input); err != nil {
			t.Errorf("%s %s is taken, but not what %s says: %v", method, target, openAPIFile, err)
		}
	}
	err = openapi3filter.ValidateResponse(t.Context(), (&openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: got.Status, Options: input.Options,
		Header: http.Header{"Content-Type": {"application/json"}},
	}).SetBodyBytes(got.Body))
	if err != nil {
		t.Errorf("the answer to %s %s is not what %s says: %v\n%s", method, target, openAPIFile, err, got.Body)
	}
}
