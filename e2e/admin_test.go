package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
)

// secretContent is in the content of every message of a test that looks for contents where none may be.
const secretContent = "THE-CONTENT-OF-A-MESSAGE"

const unrecognised = "M_UNRECOGNIZED" //nolint:misspell // as the specification has it

// withMessageID is a content that clients can log by an ID.
func withMessageID(messageID string) object {
	return object{"org.matrix.msgid": messageID, "body": secretContent}
}

func refusedContent(messageID string) object {
	content := withMessageID(messageID)
	content[poison] = true
	return content
}

// wantNoContent fails the test if the log of a server has a content in it.
func wantNoContent(t *testing.T, s *Server) {
	t.Helper()
	log, err := os.ReadFile(s.path("server.log"))
	if err != nil {
		t.Fatal(err)
	}
	if at := bytes.Index(log, []byte(secretContent)); at >= 0 {
		t.Errorf("the log has a content in it: %s", log[max(0, at-500):at+100])
	}
}

// The documentation has every call of the API, and no other.
func TestAdminAPIIsDocumented(t *testing.T) {
	doc, err := openAPI()
	if err != nil {
		t.Fatal(err)
	}
	var documented, there []string
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			documented = append(documented, method+" "+path+" "+operation.OperationID)
		}
	}
	for _, route := range admin.New(admin.Options{}).Routes() {
		there = append(there, route.Method+" "+route.Path+" "+route.Name)
	}
	slices.Sort(documented)
	slices.Sort(there)
	if !slices.Equal(documented, there) {
		t.Errorf("documented are\n%s\nthere are\n%s", strings.Join(documented, "\n"), strings.Join(there, "\n"))
	}
	if len(doc.Servers) != 1 || doc.Servers[0].URL != admin.Prefix {
		t.Errorf("documented is %v, it is %s", doc.Servers, admin.Prefix)
	}
}

// adminSite is a server with something of everything that an administrator looks at.
type adminSite struct {
	server       *Server
	remote, down *FakeRemote // one that refuses what is poisoned, and one that fails
	alice, bob   *Client     // bob's device never fetches anything
	other        *Client     // another device of his
	toRemote     *Client
}

// oddDevice is an ID that does not look the same in a path.
const oddDevice id.DeviceID = "a/b%2Fc d?é"

func newAdminSite(t *testing.T, b Backend) *adminSite {
	t.Helper()
	s := StartServer(t, b, Options{Federation: true, LogLevel: "debug"})
	site := &adminSite{server: s, remote: NewFakeRemote(t, s), down: NewFakeRemote(t, s), alice: Register(t, s, "alice"), other: Register(t, s, "bob")}
	site.bob = site.other.Login(t, s, oddDevice)
	site.remote.Behave(refusePoison(http.StatusBadRequest, "M_BAD_JSON"))
	site.down.Behave(func(*Transaction) Reply { return refuse(http.StatusServiceUnavailable, "M_UNKNOWN") })
	site.toRemote = site.remote.Device("carol", "FIRST")
	return site
}

// refuse has the remote refuse n messages, and waits until they stand aside.
func (site *adminSite) refuse(t *testing.T, api *AdminAPI, n int) []admin.Refusal {
	t.Helper()
	for range n {
		site.alice.Send(t, "m.test", To(refusedContent(unique("refused")), site.toRemote))
	}
	var res admin.Refused
	eventually(t, "the messages stand aside", func() (bool, any) {
		// Nothing is kept until the first one is.
		api.Call(t, "GET", "/outbox", nil, "", http.StatusOK, nil)
		a := api.send(t, "GET", site.server.URL+admin.Prefix+"/outbox/"+site.remote.Name+"/refused")
		if a.Status != http.StatusOK {
			return false, a
		}
		api.Call(t, "GET", "/outbox/{destination}/refused", site.names(), "", http.StatusOK, &res)
		return len(res.Refused) == n, res
	})
	return res.Refused
}

// setAside has what stands aside do so for good, as if all pauses were over, so that nothing is tried again by itself.
func (site *adminSite) setAside(t *testing.T) {
	t.Helper()
	if _, err := site.server.OpenDatabase(t).Exec("UPDATE todevice_refused SET retry_at = NULL"); err != nil {
		t.Fatal(err)
	}
}

func (site *adminSite) names() map[string]string {
	return map[string]string{"destination": site.remote.Name}
}

func (site *adminSite) device(c *Client) map[string]string {
	return map[string]string{"userID": c.UserID.String(), "deviceID": c.DeviceID.String()}
}

// Every call against a running server.
func TestAdminAPI(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		site := newAdminSite(t, b)
		api := NewAdminAPI(site.server, RegisterAdmin(t, site.server).AccessToken)
		ids := []string{unique("msgid"), unique("msgid"), unique("msgid")}
		for _, messageID := range ids {
			site.alice.Send(t, "m.test", To(withMessageID(messageID), site.bob))
		}
		site.alice.Send(t, "m.test", To(withMessageID(unique("msgid")), site.other))

		site.lookAtQueues(t, api, ids)
		site.traceQueue(t, api, ids[0])
		site.lookAtOutbox(t, api)
		site.retryAndDiscard(t, api)
		site.purge(t, api)
		site.tryWrong(t, api)
		for _, route := range admin.New(admin.Options{}).Routes() {
			if !slices.Contains(api.called[route.Method+" "+route.Path], http.StatusOK) {
				t.Errorf("%s %s was not called", route.Method, route.Path)
			}
		}
		wantNoContent(t, site.server)
	})
}

func (site *adminSite) lookAtQueues(t *testing.T, api *AdminAPI, ids []string) {
	t.Helper()
	var status admin.Status
	api.Call(t, "GET", "/status", nil, "", http.StatusOK, &status)
	if status.Queues.Queues != 2 || status.Queues.Messages != 4 || status.Queues.AgeSeconds == nil || status.Trace.Capacity == 0 ||
		status.Counters["dendrite_todevice_messages_stored_total"] != 4 || status.Counters[`dendrite_todevice_requests_total{code="200"}`] != 4 {
		t.Errorf("%+v", status)
	}
	var first, second, byAge admin.Queues
	api.Call(t, "GET", "/queues", nil, "limit=1", http.StatusOK, &first)
	if len(first.Queues) != 1 || first.Queues[0].DeviceID != string(oddDevice) || first.Queues[0].Messages != 3 {
		t.Fatalf("%+v", first)
	}
	api.Call(t, "GET", "/queues", nil, "limit=1&order=size&after="+first.Next, http.StatusOK, &second)
	if len(second.Queues) != 1 || second.Queues[0].DeviceID != site.other.DeviceID.String() || second.Next != "" {
		t.Errorf("%+v", second)
	}
	api.Call(t, "GET", "/queues", nil, "order=age", http.StatusOK, &byAge)
	if len(byAge.Queues) != 2 || *byAge.Queues[0].OldestTS > *byAge.Queues[1].OldestTS {
		t.Errorf("%+v", byAge)
	}
	var queue admin.Messages
	api.Call(t, "GET", "/queues/{userID}/{deviceID}", site.device(site.bob), "", http.StatusOK, &queue)
	if len(queue.Messages) != len(ids) {
		t.Fatalf("%+v", queue)
	}
	for i, m := range queue.Messages {
		if m.MessageID != ids[i] || m.Sender != site.alice.UserID.String() || m.Type != "m.test" || m.TS == nil || m.Bytes == 0 {
			t.Errorf("message %d: %+v", i, m)
		}
	}
}

func (site *adminSite) traceQueue(t *testing.T, api *AdminAPI, messageID string) {
	t.Helper()
	for _, query := range []string{"message_id=" + messageID, "message_id=" + messageID + "&user_id=" + site.bob.UserID.String() + "&sender=" + site.alice.UserID.String()} {
		var found admin.Trace
		api.Call(t, "GET", "/trace", nil, query, http.StatusOK, &found)
		if len(found.Records) != 2 || found.Records[0].Step != "accepted" || found.Records[1].Step != "stored" || found.Records[1].DeviceID != string(oddDevice) {
			t.Errorf("%s: %+v", query, found)
		}
	}
}

func (site *adminSite) lookAtOutbox(t *testing.T, api *AdminAPI) {
	t.Helper()
	site.alice.Send(t, "m.test", To(withMessageID(unique("msgid")), site.down.Device("dave", "FIRST")))
	var d admin.Destination
	eventually(t, "the failure is known", func() (bool, any) {
		api.Call(t, "GET", "/outbox/{destination}", map[string]string{"destination": site.down.Name}, "", http.StatusOK, &d)
		return d.LastError != nil && d.State != "ready", d
	})
	if d.Waiting != 1 || d.Bytes == 0 || d.LastError.Status != http.StatusServiceUnavailable || d.LastError.ErrCode != "M_UNKNOWN" || d.LastError.Error == "" {
		t.Errorf("%+v", d)
	}
	refused := site.refuse(t, api, 1)
	if r := refused[0]; r.Attempts != 1 || r.RetryTS == nil || r.Answer.Status != http.StatusBadRequest || r.Answer.ErrCode != "M_BAD_JSON" || r.MessageID == "" {
		t.Errorf("%+v", r)
	}
	var all admin.Destinations
	api.Call(t, "GET", "/outbox", nil, "limit=1", http.StatusOK, &all)
	var rest admin.Destinations
	api.Call(t, "GET", "/outbox", nil, "after="+all.Next, http.StatusOK, &rest)
	names := []string{all.Destinations[0].Destination, rest.Destinations[0].Destination}
	if slices.Sort(names); rest.Next != "" || !slices.Contains(names, site.down.Name) || !slices.Contains(names, site.remote.Name) {
		t.Errorf("%v, %+v", names, rest)
	}
	var status admin.Status
	api.Call(t, "GET", "/status", nil, "", http.StatusOK, &status)
	if status.Outbox.Waiting != 1 || status.Outbox.Refused != 1 || status.Outbox.SetAside != 0 {
		t.Errorf("%+v", status.Outbox)
	}
	// The remote comes back: nobody waits for the host's next attempt.
	site.down.Behave(func(*Transaction) Reply { return accept() })
	var retried admin.Retried
	api.Call(t, "POST", "/outbox/{destination}/retry", map[string]string{"destination": site.down.Name}, "", http.StatusOK, &retried)
	if retried.Retried != 0 {
		t.Errorf("%+v", retried)
	}
	const atOnce = 5 * time.Second // the watch looks after it every 20 s
	within(t, atOnce, "the message arrives", func() (bool, any) { n := len(site.down.Messages()); return n == 1, n })
}

func (site *adminSite) retryAndDiscard(t *testing.T, api *AdminAPI) {
	t.Helper()
	one := func(r admin.Refusal) map[string]string {
		return map[string]string{"destination": site.remote.Name, "position": itoa(r.Position)}
	}
	var aside admin.Refused // the one that lookAtOutbox has left
	api.Call(t, "GET", "/outbox/{destination}/refused", site.names(), "", http.StatusOK, &aside)
	refused := aside.Refused
	site.setAside(t)
	site.remote.Behave(func(*Transaction) Reply { return accept() })
	var retried admin.Retried
	api.Call(t, "POST", "/outbox/{destination}/refused/{position}/retry", one(refused[0]), "", http.StatusOK, &retried)
	const atOnce = 5 * time.Second
	within(t, atOnce, "the message arrives", func() (bool, any) { n := len(site.remote.Messages()); return n == 1, n })
	if retried.Retried != 1 {
		t.Errorf("%+v", retried)
	}
	wantNothingKept(t, site.server, site.remote.Name)
	api.Refused(t, "POST", "/outbox/{destination}/refused/{position}/retry", one(refused[0]), "", http.StatusNotFound, "M_NOT_FOUND")

	site.remote.Behave(refusePoison(http.StatusBadRequest, "M_BAD_JSON"))
	site.refuse(t, api, 2)
	site.setAside(t)
	site.remote.Behave(func(*Transaction) Reply { return accept() })
	api.Call(t, "POST", "/outbox/{destination}/retry", site.names(), "", http.StatusOK, &retried)
	within(t, atOnce, "the messages arrive", func() (bool, any) { n := len(site.remote.Messages()); return n == 3, n })
	if retried.Retried != 2 {
		t.Errorf("%+v", retried)
	}
	wantNothingKept(t, site.server, site.remote.Name)

	site.remote.Behave(refusePoison(http.StatusBadRequest, "M_BAD_JSON"))
	refused = site.refuse(t, api, 3)
	var discarded admin.Discarded
	api.Call(t, "DELETE", "/outbox/{destination}/refused/{position}", one(refused[1]), "", http.StatusOK, &discarded)
	api.Refused(t, "DELETE", "/outbox/{destination}/refused/{position}", one(refused[1]), "", http.StatusNotFound, "M_NOT_FOUND")
	var left admin.Refused
	api.Call(t, "GET", "/outbox/{destination}/refused", site.names(), "limit=1", http.StatusOK, &left)
	if discarded.Discarded != 1 || len(left.Refused) != 1 || left.Refused[0].MessageID != refused[0].MessageID || left.Next == "" {
		t.Errorf("%+v, left %+v", discarded, left)
	}
	api.Call(t, "DELETE", "/outbox/{destination}/refused", site.names(), "", http.StatusOK, &discarded)
	if discarded.Discarded != 2 {
		t.Errorf("%+v", discarded)
	}
	wantNothingKept(t, site.server, site.remote.Name)
	api.Refused(t, "GET", "/outbox/{destination}", site.names(), "", http.StatusNotFound, "M_NOT_FOUND")
	for _, r := range refused {
		var found admin.Trace
		api.Call(t, "GET", "/trace", nil, "edu_id="+r.MessageID, http.StatusOK, &found)
		if last := found.Records[len(found.Records)-1]; last.Step != "dropped" || last.Reason != "discarded" || last.Destination != site.remote.Name {
			t.Errorf("%+v", found.Records)
		}
	}
}

func (site *adminSite) purge(t *testing.T, api *AdminAPI) {
	t.Helper()
	var deleted admin.Deleted
	api.Call(t, "DELETE", "/queues/{userID}/{deviceID}", site.device(site.bob), "", http.StatusOK, &deleted)
	if deleted.Deleted != 3 {
		t.Errorf("%+v", deleted)
	}
	var found admin.Trace
	api.Call(t, "GET", "/trace", nil, "user_id="+site.bob.UserID.String(), http.StatusOK, &found)
	if last := found.Records[len(found.Records)-1]; last.Reason != "purged" || last.Count != 3 {
		t.Errorf("%+v", last)
	}
	// The device is as it was.
	site.bob.WantNothing(t, "")
	site.alice.Send(t, "m.test", To(withMessageID("later"), site.bob, site.other))
	api.Call(t, "DELETE", "/queues/{userID}", map[string]string{"userID": site.bob.UserID.String()}, "", http.StatusOK, &deleted)
	if deleted.Deleted != 3 {
		t.Errorf("%+v", deleted)
	}
	site.other.WantNothing(t, "")
	var left admin.Queues
	api.Call(t, "GET", "/queues", nil, "", http.StatusOK, &left)
	if len(left.Queues) != 0 {
		t.Errorf("%+v", left)
	}
	api.Call(t, "GET", "/queues/{userID}/{deviceID}", site.device(site.bob), "", http.StatusOK, nil)
}

// tryWrong tries what is not there, and what is not well formed.
func (site *adminSite) tryWrong(t *testing.T, api *AdminAPI) {
	t.Helper()
	nobody := map[string]string{"userID": "@nobody:" + site.server.name, "deviceID": "A"}
	for _, route := range []struct{ method, path string }{
		{"GET", "/queues/{userID}/{deviceID}"}, {"DELETE", "/queues/{userID}/{deviceID}"}, {"DELETE", "/queues/{userID}"},
	} {
		api.Refused(t, route.method, route.path, nobody, "", http.StatusNotFound, "M_NOT_FOUND")
		nobody["userID"] = "nobody"
		api.Refused(t, route.method, route.path, nobody, "", http.StatusBadRequest, "M_INVALID_PARAM")
		nobody["userID"] = "@nobody:" + site.server.name
	}
	api.Refused(t, "GET", "/trace", nil, "", http.StatusBadRequest, "M_MISSING_PARAM")
	api.Refused(t, "GET", "/queues", nil, "limit=0", http.StatusBadRequest, "M_INVALID_PARAM")
	api.Refused(t, "GET", "/queues", nil, "limits=1", http.StatusBadRequest, unrecognised)
	for _, request := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/", 404}, {"GET", "/nothing", 404}, {"GET", "/status/more", 404}, {"POST", "/queues/a/b/c", 404},
		{"POST", "/status", 405}, {"PUT", "/queues", 405}, {"GET", "/queues/@bob:x", 405}, {"GET", "/outbox/x/retry", 405}, {"POST", "/outbox/x/refused", 405},
	} {
		for _, listener := range []string{site.server.URL, "https://" + site.server.name} {
			a := api.send(t, request.method, listener+admin.Prefix+request.path)
			if a.Status != request.status || a.ErrCode != unrecognised {
				t.Errorf("%s %s: want %d %s, got %v", request.method, request.path, request.status, unrecognised, a)
			}
		}
	}
	if a := api.send(t, "GET", "https://"+site.server.name+admin.Prefix+"/status"); a.Status != http.StatusOK {
		t.Errorf("over TLS: %v", a)
	}
	asked, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, site.server.URL+admin.Prefix+"/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := transport.RoundTrip(asked) // as a browser asks, without a token
	if err != nil {
		t.Fatal(err)
	}
	if _ = res.Body.Close(); res.StatusCode != http.StatusOK || res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("OPTIONS: %d %v", res.StatusCode, res.Header)
	}
}

// Nobody but an administrator is let in, and nothing happens when somebody else tries.
func TestAdminAPIRefusesOthers(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		site := newAdminSite(t, b)
		root := NewAdminAPI(site.server, RegisterAdmin(t, site.server).AccessToken)
		site.alice.Send(t, "m.test", To(withMessageID(unique("msgid")), site.bob))
		refused := site.refuse(t, root, 1)
		values := site.device(site.bob)
		values["destination"], values["position"] = site.remote.Name, itoa(refused[0].Position)
		gone, deactivated := RegisterAdmin(t, site.server), RegisterAdmin(t, site.server)
		for _, c := range []*Client{gone, deactivated} { // while their tokens are good
			NewAdminAPI(site.server, c.AccessToken).Call(t, "GET", "/status", nil, "", http.StatusOK, &admin.Status{})
		}
		if _, err := gone.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
		want200(t, deactivated, http.MethodPost, deactivated.BuildClientURL("v3", "account", "deactivate"), object{})
		for name, who := range map[string]struct {
			token   string
			status  int
			errcode string
		}{
			"an administrator who has signed out": {gone.AccessToken, http.StatusUnauthorized, "M_UNKNOWN_TOKEN"},
			"a deactivated administrator":         {deactivated.AccessToken, http.StatusUnauthorized, "M_UNKNOWN_TOKEN"},
			"a user":                              {site.alice.AccessToken, http.StatusForbidden, "M_FORBIDDEN"},
			"the owner of the queue":              {site.bob.AccessToken, http.StatusForbidden, "M_FORBIDDEN"},
			"a guest":                             {RegisterGuest(t, site.server).AccessToken, http.StatusForbidden, ""},
			"an application service":              {appServiceToken, http.StatusForbidden, "M_FORBIDDEN"},
			"nobody":                              {"", http.StatusUnauthorized, "M_MISSING_TOKEN"},
			"somebody with a token of no session": {"made up", http.StatusUnauthorized, "M_UNKNOWN_TOKEN"},
		} {
			api := NewAdminAPI(site.server, who.token)
			for _, route := range admin.New(admin.Options{}).Routes() {
				query := ""
				if route.Path == "/trace" {
					query = "message_id=x"
				}
				var answer struct{ ErrCode string }
				api.Call(t, route.Method, route.Path, values, query, who.status, &answer)
				if who.errcode != "" && answer.ErrCode != who.errcode {
					t.Errorf("%s, %s %s: want %s, got %s", name, route.Method, route.Path, who.errcode, answer.ErrCode)
				}
			}
		}
		var queue admin.Messages
		root.Call(t, "GET", "/queues/{userID}/{deviceID}", values, "", http.StatusOK, &queue)
		var left admin.Refused
		root.Call(t, "GET", "/outbox/{destination}/refused", values, "", http.StatusOK, &left)
		if len(queue.Messages) != 1 || len(left.Refused) != 1 {
			t.Errorf("something has happened: %s", fmt.Sprint(queue, left))
		}
	})
}
