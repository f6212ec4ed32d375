package host

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"

	"github.com/matrix-org/dendrite/internal/caching"
	syncstorage "github.com/matrix-org/dendrite/syncapi/storage"
	"github.com/matrix-org/dendrite/syncapi/storage/shared"
	"github.com/matrix-org/dendrite/syncapi/streams"
	hostsync "github.com/matrix-org/dendrite/syncapi/sync"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapitypes "github.com/matrix-org/dendrite/userapi/api"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
)

// twin answers /sync from the database and the notifier of a running server, but has caches of its own: the host leaves out of an answer
// what it remembers to have told the device, so of two answers from the same caches the second one is another.
type twin struct {
	db        *countingDatabase
	providers *streams.Streams // the host's
	presence  *presences
	answer    func(*http.Request, *userapitypes.Device) util.JSONResponse
}

// hostTwin answers as unmodified Dendrite does, but for the send-to-device messages.
func (m *monolith) hostTwin() *twin {
	t := m.newTwin(m.UserAPI)
	t.answer = m.twinPool(t, t.db, m.UserAPI, t.providers).OnIncomingSyncRequest
	return t
}

// moduleTwin answers as the module's route does.
func (m *monolith) moduleTwin() *twin {
	users := countedKeys{m.UserAPI, m.keys}
	t := m.newTwin(users)
	db, err := newPoolDatabase(m.Context(), t.db)
	if err != nil {
		m.Fatal(err)
	}
	pool := m.twinPool(t, db, users, poolStreams(t.providers, t.db, m.sync.typing))
	t.answer = func(req *http.Request, device *userapitypes.Device) util.JSONResponse {
		return m.serveSync(req, device, pool)
	}
	return t
}

func (m *monolith) newTwin(users userapitypes.SyncUserAPI) *twin {
	m.Helper()
	db, err := syncstorage.NewSyncServerDatasource(m.Context(), m.cm, &m.Config.SyncAPI.Database)
	if err != nil {
		m.Fatal(err)
	}
	api := *m.sync
	api.db = &syncDatabase{Database: db, module: m.module} // on SQLite the host's providers can be made once for each
	providers := m.newStreams(&m.Monolith, &api, users, &lazyLoaded{users: map[string]string{}})
	providers.SendToDeviceStreamProvider = forgetfulProvider{&provider{module: m.module}}
	return &twin{
		db:        &countingDatabase{Database: api.db, polled: func() {}},
		providers: providers,
		presence:  &presences{},
	}
}

// forgetfulProvider reads the ignored users each time, as nobody tells the twin of their changes.
type forgetfulProvider struct{ *provider }

func (p forgetfulProvider) CompleteSync(ctx context.Context, snapshot syncstorage.DatabaseTransaction, req *synctypes.SyncRequest) synctypes.StreamPosition {
	return p.IncrementalSync(ctx, snapshot, req, 0, p.LatestPosition(ctx))
}

func (p forgetfulProvider) IncrementalSync(ctx context.Context, snapshot syncstorage.DatabaseTransaction, req *synctypes.SyncRequest, from, to synctypes.StreamPosition) synctypes.StreamPosition {
	ignored, err := newIgnoredSenders()
	if err != nil {
		failSync(ctx, err)
		return from
	}
	return (&provider{module: p.module, ignored: ignored}).IncrementalSync(ctx, snapshot, req, from, to)
}

func (m *monolith) twinPool(t *twin, db syncstorage.Database, users userapitypes.SyncUserAPI, providers *streams.Streams) *hostsync.RequestPool {
	return hostsync.NewRequestPool(
		db, &m.Config.SyncAPI, users, m.RoomserverAPI, providers, m.sync.notifier, t.presence, t.presence, caching.DisableMetrics,
	)
}

// catchUp tells the twin's streams how far the server's have come.
func (t *twin) catchUp(latest synctypes.StreamingToken) {
	t.providers.PDUStreamProvider.Advance(latest.PDUPosition)
	t.providers.TypingStreamProvider.Advance(latest.TypingPosition)
	t.providers.ReceiptStreamProvider.Advance(latest.ReceiptPosition)
	t.providers.InviteStreamProvider.Advance(latest.InvitePosition)
	t.providers.AccountDataStreamProvider.Advance(latest.AccountDataPosition)
	t.providers.DeviceListStreamProvider.Advance(latest.DeviceListPosition)
	t.providers.NotificationDataStreamProvider.Advance(latest.NotificationDataPosition)
	t.providers.PresenceStreamProvider.Advance(latest.PresencePosition)
}

// get returns the status and the body of the answer to a /sync.
func (t *twin) get(ctx context.Context, device *userapitypes.Device, query url.Values) (int, []byte, error) {
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/_matrix/client/v3/sync?"+query.Encode(), nil)
	req.Header.Set("Authorization", "Bearer "+device.AccessToken)
	res := t.answer(req, device)
	body, err := json.Marshal(res.JSON)
	return res.Code, body, err
}

// countingDatabase counts what the pool and its streams open.
type countingDatabase struct {
	syncstorage.Database
	mu        sync.Mutex
	snapshots int
	polled    func() // is called when a request has come to where it reads or waits
}

func (d *countingDatabase) NewDatabaseSnapshot(ctx context.Context) (*shared.DatabaseTransaction, error) {
	d.mu.Lock()
	d.snapshots++
	d.mu.Unlock()
	return d.Database.NewDatabaseSnapshot(ctx)
}

// opened returns how many snapshots there were.
func (d *countingDatabase) opened() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snapshots
}

func (d *countingDatabase) onPoll(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.polled = f
}

func (d *countingDatabase) CleanSendToDeviceUpdates(ctx context.Context, userID, deviceID string, before synctypes.StreamPosition) error {
	d.mu.Lock()
	polled := d.polled
	d.mu.Unlock()
	polled()
	return d.Database.CleanSendToDeviceUpdates(ctx, userID, deviceID, before)
}

// presences keeps what a pool says of its users' presence from the server, since the other twin is to find the same there.
type presences struct {
	mu   sync.Mutex
	sent []string
}

func (p *presences) SendPresence(userID string, presence synctypes.Presence, _ *string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, userID+" "+presence.String())
	return nil
}

func (p *presences) EmitPresence(context.Context, string, synctypes.Presence, *string, spec.Timestamp, bool) {
}

func (p *presences) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sent)
}

// lazyLoaded is a LazyLoadCache that has at once what is stored, and forgets nothing; the host's does neither for sure.
type lazyLoaded struct {
	mu    sync.Mutex
	users map[string]string
}

func (c *lazyLoaded) key(device *userapitypes.Device, roomID, userID string) string {
	return fmt.Sprint(device.UserID, device.ID, roomID, userID)
}

func (c *lazyLoaded) StoreLazyLoadedUser(device *userapitypes.Device, roomID, userID, eventID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users[c.key(device, roomID, userID)] = eventID
}

func (c *lazyLoaded) IsLazyLoadedUserCached(device *userapitypes.Device, roomID, userID string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	eventID, known := c.users[c.key(device, roomID, userID)]
	return eventID, known
}

func (c *lazyLoaded) InvalidateLazyLoadedUser(device *userapitypes.Device, roomID, userID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.users, c.key(device, roomID, userID))
}

// normalise returns an answer without that in which two answers of the host's alone differ.
func normalise(t *testing.T, body []byte) string {
	t.Helper()
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	// The host makes lists out of maps.
	lists, _ := answer["device_lists"].(map[string]any)
	for _, key := range []string{"changed", "left"} {
		sortBy(lists[key], func(user any) string { return user.(string) })
	}
	presence, _ := answer["presence"].(map[string]any)
	sortBy(presence["events"], func(event any) string { return event.(map[string]any)["sender"].(string) })
	for _, event := range each(presence["events"]) {
		delete(event["content"].(map[string]any), "last_active_ago") // counted from now
	}
	rooms, _ := answer["rooms"].(map[string]any)
	for _, section := range rooms {
		for _, room := range section.(map[string]any) {
			normaliseRoom(room.(map[string]any))
		}
	}
	normalised, err := json.MarshalIndent(answer, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(normalised)
}

func normaliseRoom(room map[string]any) {
	ephemeral, _ := room["ephemeral"].(map[string]any)
	for _, event := range each(ephemeral["events"]) {
		if event["type"] == "m.typing" {
			sortBy(event["content"].(map[string]any)["user_ids"], func(user any) string { return user.(string) }) // of a map too
		}
	}
	state, _ := room["state"].(map[string]any)
	sortBy(state["events"], func(event any) string { return event.(map[string]any)["event_id"].(string) }) // in no order in the database
	timeline, _ := room["timeline"].(map[string]any)
	for _, event := range each(timeline["events"]) {
		content, _ := event["content"].(map[string]any)
		if event["type"] == "m.room.member" && len(content) == 1 && content["membership"] == "leave" {
			delete(event, "origin_server_ts") // now, where the host makes one up for an invite that was taken back
		}
	}
}

// each returns the objects of a list that may not be there.
func each(list any) []map[string]any {
	items, _ := list.([]any)
	objects := make([]map[string]any, 0, len(items))
	for _, item := range items {
		objects = append(objects, item.(map[string]any))
	}
	return objects
}

func sortBy(list any, key func(any) string) {
	items, _ := list.([]any)
	slices.SortStableFunc(items, func(a, b any) int { return cmp.Compare(key(a), key(b)) })
}
