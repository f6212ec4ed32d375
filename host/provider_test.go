package host

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/matrix-org/dendrite/setup/config"
	syncstorage "github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/storage/shared"
	hostsync "github.com/matrix-org/dendrite/syncapi/sync"
	filtertypes "github.com/matrix-org/dendrite/syncapi/synctypes"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/streams"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// ignoreList is a snapshot that has m.ignored_user_list alone.
type ignoreList struct {
	syncstorage.DatabaseTransaction
	ignores *synctypes.IgnoredUsers
	err     error
}

func (s ignoreList) IgnoresForUser(context.Context, string) (*synctypes.IgnoredUsers, error) {
	return s.ignores, s.err
}

func syncRequest() *synctypes.SyncRequest {
	return &synctypes.SyncRequest{
		Device:   &userapi.Device{UserID: "@bob:x", ID: "PHONE"},
		Response: synctypes.NewResponse(),
	}
}

func waiting() []types.Message {
	return []types.Message{
		{Position: 10, Sender: "@alice:x", Type: "m.a", Content: json.RawMessage(`{"z":1,"a":12345678901234567890}`)},
		{Position: 20, Sender: "@eve:x", Type: "m.b", Content: json.RawMessage(`{}`)},
	}
}

func TestProviderFillsIn(t *testing.T) {
	d := newTestHost(t, &fakeStore{messages: waiting()})
	if got := newTestProvider(t, d).LatestPosition(t.Context()); got != synctypes.StreamPosition(testPublished) {
		t.Errorf("the latest position is %d", got)
	}
	for name, ignored := range map[string]ignoreList{
		"none":      {err: sql.ErrNoRows},
		"a user":    {ignores: &synctypes.IgnoredUsers{List: map[string]interface{}{"@eve:x": struct{}{}}}},
		"empty":     {ignores: &synctypes.IgnoredUsers{}},
		"only self": {ignores: &synctypes.IgnoredUsers{List: map[string]interface{}{"@bob:x": struct{}{}}}},
	} {
		t.Run(name, func(t *testing.T) {
			req := syncRequest()
			ctx, failed := withSyncFailure(t.Context())
			defer failed.cancel()
			if next := newTestProvider(t, d).CompleteSync(ctx, ignored, req); next != synctypes.StreamPosition(testPublished) {
				t.Errorf("the next position is %d", next)
			}
			want := []string{`{"sender":"@alice:x","type":"m.a","content":{"z":1,"a":12345678901234567890}}`}
			if name != "a user" {
				want = append(want, `{"sender":"@eve:x","type":"m.b","content":{}}`)
			}
			if got := events(t, req); !slices.Equal(got, want) {
				t.Errorf("the events are %s, want %s", got, want)
			}
			if failed.failure() != nil {
				t.Error(failed.failure())
			}
		})
	}
}

func events(t *testing.T, req *synctypes.SyncRequest) []string {
	t.Helper()
	var all []string
	for _, event := range req.Response.ToDevice.Events {
		raw, err := json.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(raw))
	}
	return all
}

func newTestProvider(t *testing.T, d *Dendrite) *provider {
	t.Helper()
	ignored, err := newIgnoredSenders()
	if err != nil {
		t.Fatal(err)
	}
	return &provider{module: d.module, ignored: ignored}
}

func TestProviderReadsFromATokenOfTheFuture(t *testing.T) {
	d := newTestHost(t, &fakeStore{messages: waiting()})
	p := newTestProvider(t, d)
	req := syncRequest()
	from := synctypes.StreamPosition(d.module.SinceForSync(testPublished + 1))
	next := p.IncrementalSync(t.Context(), ignoreList{err: sql.ErrNoRows}, req, from, synctypes.StreamPosition(testPublished))
	if from != synctypes.StreamPosition(streams.BeforeAll) || next != synctypes.StreamPosition(testPublished) || len(req.Response.ToDevice.Events) != 2 {
		t.Errorf("from %d came %d events and next %d", from, len(req.Response.ToDevice.Events), next)
	}
}

func TestFailedReadFailsTheSync(t *testing.T) {
	away := errors.New("the database is away")
	list := ignoreList{err: sql.ErrNoRows}
	for name, test := range map[string]struct {
		store    *fakeStore
		snapshot ignoreList
	}{
		"the queue":         {&fakeStore{err: away}, list},
		"the ignored users": {&fakeStore{messages: waiting()}, ignoreList{err: away}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestProvider(t, newTestHost(t, test.store))
			req := syncRequest()
			ctx, failed := withSyncFailure(t.Context())
			next := p.IncrementalSync(ctx, test.snapshot, req, 5, synctypes.StreamPosition(testPublished))
			if next != 5 || len(req.Response.ToDevice.Events) != 0 {
				t.Errorf("the next position is %d with %d events", next, len(req.Response.ToDevice.Events))
			}
			if !errors.Is(failed.failure(), away) || ctx.Err() == nil {
				t.Errorf("the failure is %v, the context's %v", failed.failure(), ctx.Err())
			}
		})
	}
}

// failingDatabase is a sync API's database without snapshots.
type failingDatabase struct {
	syncstorage.Database
	err error
}

func (d failingDatabase) NewDatabaseSnapshot(context.Context) (*shared.DatabaseTransaction, error) {
	return nil, d.err
}

func (d failingDatabase) GetFilter(context.Context, *filtertypes.Filter, string, string) error {
	return d.err
}

func TestFailedSnapshotFailsTheSync(t *testing.T) {
	away := errors.New("the database is away")
	db := &syncDatabase{Database: failingDatabase{err: away}}
	ctx, failed := withSyncFailure(t.Context())
	if _, err := db.NewDatabaseSnapshot(ctx); !errors.Is(err, away) || !errors.Is(failed.failure(), away) {
		t.Errorf("the error is %v, the failure %v", err, failed.failure())
	}
	ctx, failed = withSyncFailure(t.Context())
	defer failed.cancel()
	db.Database = failingDatabase{}
	if _, err := db.NewDatabaseSnapshot(ctx); err != nil || failed.failure() != nil || ctx.Err() != nil {
		t.Errorf("the error is %v, the failure %v", err, failed.failure())
	}
}

// The host's RequestPool answers 400 where it cannot read the client's filter, whosever fault that is.
func TestUnreadFilterIsNotTheClientsFault(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		filter string
		code   int
	}{
		"the database is away":  {errors.New("the database is away"), "1", http.StatusInternalServerError},
		"the server stops":      {context.Canceled, "1", http.StatusServiceUnavailable},
		"an ID without meaning": {errors.New("invalid input syntax for type integer"), "mine", http.StatusBadRequest},
		"an ID without end":     {errors.New("out of range for type integer"), "2147483648", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			d := newTestHost(t, &fakeStore{})
			db := &syncDatabase{Database: failingDatabase{err: test.err}}
			pool := hostsync.NewRequestPool(db, &config.SyncAPI{Matrix: &config.Global{}}, nil, nil, nil, nil, nil, nil, false)
			req := httptest.NewRequest(http.MethodGet, "/sync?filter="+test.filter, nil)
			if res := d.serveSync(req, &userapi.Device{UserID: "@bob:x", ID: "PHONE"}, pool); res.Code != test.code {
				t.Errorf("want %d, got %d %v", test.code, res.Code, res.JSON)
			}
		})
	}
}

// The host then takes its default.
func TestUnknownFilterIsNoFailure(t *testing.T) {
	db := &syncDatabase{Database: failingDatabase{err: sql.ErrNoRows}}
	ctx, failed := withSyncFailure(t.Context())
	defer failed.cancel()
	if err := db.GetFilter(ctx, &filtertypes.Filter{}, "bob", "1"); !errors.Is(err, sql.ErrNoRows) || failed.failure() != nil {
		t.Errorf("the error is %v, the failure %v", err, failed.failure())
	}
}

func TestCleanSendToDeviceUpdatesAcknowledges(t *testing.T) {
	store := &fakeStore{}
	d := newTestHost(t, store)
	db := &syncDatabase{module: d.module}
	for _, since := range []synctypes.StreamPosition{0, -1, synctypes.StreamPosition(testPublished) + 1, 30} {
		if err := db.CleanSendToDeviceUpdates(t.Context(), "@bob:x", "PHONE", since); err != nil {
			t.Fatal(err)
		}
	}
	d.Stop() // deletes what is pending
	want := []storage.Acknowledgement{{Device: types.Device{UserID: "@bob:x", DeviceID: "PHONE"}, Through: 30}}
	if !slices.Equal(store.acknowledged, want) {
		t.Errorf("acknowledged was %+v, want %+v", store.acknowledged, want)
	}
}
