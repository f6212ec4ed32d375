package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/admin"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// FuzzParameters takes any call with any query and any variables of the path: it is answered, or refused with a code and a sentence, and
// never fails. What is not named exactly is not touched.
func FuzzParameters(f *testing.F) {
	cursor := func(text string) string { return "after=" + strings.TrimRight(url.QueryEscape(text), "=") }
	for _, query := range []string{
		"", "limit=1&order=age", "limit=0", "a;b", "after=bnVsbA", "access_token=x", "message_id=%00", "user=@bob:" + here + "&device=%ff", "limit=+1", "since=-1",
		"after=eyJvIjowLCJ1IjoiXHUwMDAwIiwiZCI6IiIsIm0iOjEsInAiOjF9", "after=LTE", "after=MWUzMDA", cursor("e30="), "limit=1&limit=2", "edu_id=1&sender=%40a&limit=99999999999999999999",
	} {
		for call := range uint8(16) {
			f.Add(call, "@bob:"+here, "PHONE", there, "1", query)
		}
	}
	f.Add(uint8(3), "\x00", "\xff", "", "-1", "limit=1000")
	store := testdb.SQLite(f)(f)
	routes := admin.New(fuzzedOptions(f, store)).Routes()
	position := types.Position(0)
	add := func(t testing.TB) {
		batch := storage.Batch{Writer: "writer", Previous: position, Last: position + 1, Deliveries: []storage.Delivery{{
			Position: position + 1, Sender: "@alice:" + here, Type: "m.test", Copies: []storage.Copy{{Device: bob, Content: []byte(`{"a":"` + canary + `"}`)}},
		}}}
		if err := store.Commit(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		position++
	}
	var err error
	if position, err = store.Claim(f.Context(), "writer", 1); err != nil {
		f.Fatal(err)
	}
	add(f)
	f.Fuzz(func(t *testing.T, call uint8, userID, deviceID, destination, position, query string) {
		route := routes[int(call)%len(routes)]
		req := httptest.NewRequest(route.Method, "/", nil).WithContext(t.Context())
		req.URL.RawQuery = query
		res := route.Handle(req, "@admin:"+here, map[string]string{
			"userID": userID, "deviceID": deviceID, "destination": destination, "position": position,
		})
		body, err := json.Marshal(res.JSON)
		if err != nil || strings.Contains(string(body), canary) {
			t.Fatalf("%s: the answer is %s, %v", route.Path, body, err)
		}
		if res.Code != http.StatusOK {
			var refusal struct{ ErrCode, Error string }
			if err = json.Unmarshal(body, &refusal); err != nil || res.Code >= 500 || refusal.ErrCode == "" || !strings.HasSuffix(refusal.Error, ".") {
				t.Fatalf("%s?%s: the answer is %d %s", route.Path, query, res.Code, body)
			}
		}
		messages, err := store.Messages(t.Context(), bob, 0, 1<<62, 10, nil)
		switch {
		case err != nil:
			t.Fatal(err)
		case len(messages) == 1:
		case userID != bob.UserID || route.Method != http.MethodDelete:
			t.Errorf("%s %s for %q: bob has %d messages left", route.Method, route.Path, userID, len(messages))
		default:
			add(t)
		}
	})
}

var bob = types.Device{UserID: "@bob:" + here, DeviceID: "PHONE"}

func fuzzedOptions(f *testing.F, store *testdb.Store) admin.Options {
	f.Helper()
	if err := store.Migrate(f.Context()); err != nil {
		f.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	entry := logrus.NewEntry(log)
	host := &fakeHost{until: map[string]time.Time{}, givenUp: map[string]bool{}}
	return admin.Options{
		Store:       store,
		Outbox:      outbox.New(outbox.Options{Store: store, Aside: store, Host: host, Log: entry}),
		StoredAt:    func(p types.Position) (time.Time, bool) { return p.Time(), true },
		UserDevices: func(context.Context, string) ([]string, error) { return []string{bob.DeviceID}, nil },
		IsLocal:     func(serverName string) bool { return serverName == here },
		Published:   func() types.Position { return 1 << 62 },
		Purge:       store.Purge,
		Find:        trace.New(trace.Options{Capacity: 10, Log: entry}).Find,
		Info:        func() admin.Info { return admin.Info{} },
		Log:         entry,
		Now:         time.Now,
	}
}
