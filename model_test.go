package todevicemodule_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"pgregory.net/rapid"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/testdb"
	"github.com/matrix-org/dendrite/todevicemodule/internal/faulty"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

const (
	modelLimit = 3 // small, so that queues are often longer
	modelUser  = "@bob:test"
)

// TestModel holds the module against the simplest thing that has its promises: for each device a list of
// messages, and how many of them are acknowledged.
func TestModel(t *testing.T) {
	testdb.Each(t, func(t *testing.T, open testdb.Open) {
		runs := 0
		rapid.Check(t, func(rt *rapid.T) {
			// The runs share a database, each with devices of its own: queues never mix.
			runs++
			m := newModel(t, rt, open, fmt.Sprintf("RUN%d-", runs))
			defer m.stop()
			rt.Repeat(map[string]func(*rapid.T){
				"send":          m.send,
				"send again":    m.sendAgain,
				"sync":          m.syncLatest,
				"sync with old": m.syncAnyToken,
				"sync without":  m.syncWithout,
				"sync future":   m.syncFuture,
				"failed sync":   m.failedSync,
				"restart":       m.restart,
				"":              m.check,
			})
		})
	})
}

// model is both the module and what it ought to do.
type model struct {
	noFederation
	t      *testing.T
	rt     *rapid.T
	open   testdb.Open
	db     *testdb.Store
	store  *faulty.Store
	module *todevicemodule.Module
	ctx    context.Context

	deviceIDs []string
	queues    map[string]*queue
	sent      []sent
	latest    types.Position
}

// queue is one device's list. A token that covers n messages of it acknowledges those.
type queue struct {
	messages     []string
	positions    []types.Position // as far as they were seen
	acknowledged int
	tokens       []token
}

type token struct {
	position types.Position
	covers   int
}

type sent struct{ sender, eventType, transactionID, body string }

func newModel(t *testing.T, rt *rapid.T, open testdb.Open, prefix string) *model {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	rt.Cleanup(cancel)
	m := &model{t: t, rt: rt, open: open, ctx: ctx, queues: make(map[string]*queue)}
	for _, name := range []string{"A", "B", "C"} {
		m.deviceIDs = append(m.deviceIDs, prefix+name)
		m.queues[prefix+name] = &queue{}
	}
	m.start()
	return m
}

func (m *model) start() {
	m.db = m.open(m.t)
	m.store = &faulty.Store{Store: m.db}
	log := logrus.New()
	log.SetOutput(io.Discard)
	config := todevicemodule.DefaultConfig()
	config.SyncLimit = modelLimit
	module, err := todevicemodule.New(config, m, nil, logrus.NewEntry(log))
	if err == nil {
		err = module.Start(m.ctx)
	}
	if err != nil {
		m.rt.Fatal(err)
	}
	m.module = module
	if m.module.LatestPosition() <= m.latest {
		m.rt.Fatalf("positions went back from %d to %d over a restart", m.latest, m.module.LatestPosition())
	}
}

func (m *model) stop() {
	if err := errors.Join(m.module.Stop(m.ctx), m.db.Close()); err != nil {
		m.rt.Fatal(err)
	}
}

// The model is the host, too.

// noFederation is a host without other servers.
type noFederation struct{}

func (noFederation) Federates() bool                                          { return false }
func (noFederation) Ring(context.Context, string) error                       { return nil }
func (noFederation) Backoff(string) (until time.Time, givenUp bool)           { return time.Time{}, false }
func (noFederation) Revive(string)                                            {}
func (noFederation) Reach(context.Context, string) error                      { return nil }
func (noFederation) MarkDeviceListStale(_ context.Context, _, _ string) error { return nil }

func (m *model) UserDevices(_ context.Context, userID string) ([]string, error) {
	if userID != modelUser {
		return []string{"PHONE"}, nil
	}
	return slices.Clone(m.deviceIDs), nil
}

func (m *model) DeviceOwners(context.Context, []string) (map[string]string, error) {
	return nil, errors.New("not asked for so few users")
}

func (m *model) VirtualDevice(string) bool                                  { return false }
func (m *model) IsLocalServer(serverName string) bool                       { return serverName == "test" }
func (m *model) WakeDevices(types.Position, []writer.Wakeup)                {}
func (m *model) Store(todevicemodule.DatabaseConfig) (storage.Store, error) { return m.store, nil }

func (m *model) ForeignQueue(todevicemodule.DatabaseConfig) (storage.ForeignQueue, error) {
	return nil, nil
}

func (m *model) restart(*rapid.T) {
	m.stop()
	m.start()
}

func (m *model) send(rt *rapid.T) {
	s := sent{
		sender:        rapid.SampledFrom([]string{"@alice:test", "@carol:test"}).Draw(rt, "sender"),
		eventType:     rapid.SampledFrom([]string{"m.one", "m.two"}).Draw(rt, "type"),
		transactionID: fmt.Sprintf("%s%d", m.deviceIDs[0], len(m.sent)),
	}
	named := rapid.SliceOfNDistinct(rapid.SampledFrom(append([]string{"*", "UNKNOWN"}, m.deviceIDs...)), 1, 4, rapid.ID[string]).Draw(rt, "devices")
	var parts []string
	contents := make(map[string]string)
	for _, deviceID := range named {
		content := fmt.Sprintf(`{"n":%d,"for":%q}`, len(m.sent), deviceID)
		contents[deviceID] = content
		parts = append(parts, fmt.Sprintf("%q:%s", deviceID, content))
	}
	s.body = fmt.Sprintf(`{"messages":{%q:{%s}}}`, modelUser, strings.Join(parts, ","))
	switch rapid.SampledFrom([]string{"works", "works", "lost before", "lost after"}).Draw(rt, "commit") {
	case "lost before":
		m.store.LoseBefore(1)
	case "lost after":
		m.store.LoseAnswer(1)
	}
	m.put(rt, s)
	m.store.OnCommit(nil)
	m.sent = append(m.sent, s)
	for _, deviceID := range m.deviceIDs {
		content, ok := contents[deviceID]
		if !ok {
			content, ok = contents["*"]
		}
		if ok {
			q := m.queues[deviceID]
			q.messages = append(q.messages, s.sender+s.eventType+content)
		}
	}
}

// sendAgain repeats a request: nothing may change.
func (m *model) sendAgain(rt *rapid.T) {
	if len(m.sent) == 0 {
		return
	}
	m.put(rt, rapid.SampledFrom(m.sent).Draw(rt, "again"))
}

func (m *model) put(rt *rapid.T, s sent) {
	req := httptest.NewRequest(http.MethodPut, "/", strings.NewReader(s.body)).WithContext(m.ctx)
	res := m.module.SendToDevice(req, types.Device{UserID: s.sender, DeviceID: "PHONE"}, s.eventType, s.transactionID)
	if res.Code != http.StatusOK {
		rt.Fatalf("%d %v", res.Code, res.JSON)
	}
}

func (m *model) drawDevice(rt *rapid.T) (string, *queue) {
	deviceID := rapid.SampledFrom(m.deviceIDs).Draw(rt, "device")
	return deviceID, m.queues[deviceID]
}

func (m *model) syncLatest(rt *rapid.T) {
	deviceID, q := m.drawDevice(rt)
	if len(q.tokens) == 0 {
		m.sync(rt, deviceID, token{})
		return
	}
	m.sync(rt, deviceID, q.tokens[len(q.tokens)-1])
}

func (m *model) syncAnyToken(rt *rapid.T) {
	deviceID, q := m.drawDevice(rt)
	if len(q.tokens) == 0 {
		return
	}
	since := rapid.SampledFrom(q.tokens).Draw(rt, "since")
	first := m.sync(rt, deviceID, since)
	if again := m.sync(rt, deviceID, since); !slices.Equal(again, first) {
		rt.Fatalf("the same since gave %v, then %v", first, again)
	}
}

func (m *model) syncWithout(rt *rapid.T) {
	deviceID, _ := m.drawDevice(rt)
	m.sync(rt, deviceID, token{})
}

// syncFuture takes a token that was never handed out: it acknowledges nothing and hides nothing.
func (m *model) syncFuture(rt *rapid.T) {
	deviceID, _ := m.drawDevice(rt)
	ahead := rapid.SampledFrom([]types.Position{1, 1000, 1 << 60}).Draw(rt, "ahead")
	m.sync(rt, deviceID, token{position: m.module.LatestPosition() + ahead})
}

// failedSync is a /sync while the database fails reads: it must be an error, unless the queue is known without it, and the same
// since stays good.
func (m *model) failedSync(rt *rapid.T) {
	deviceID, q := m.drawDevice(rt)
	if len(q.messages) == q.acknowledged {
		return // without anything to read there is nothing to fail
	}
	m.store.OnRead(func() error { return faulty.ErrLost })
	defer m.store.OnRead(nil)
	device := types.Device{UserID: modelUser, DeviceID: deviceID}
	messages, _, err := m.module.ReadForSync(m.ctx, device, 0, m.module.LatestPosition(), nobodyIgnored)
	if err == nil && !slices.Equal(bodies(messages), q.want()) {
		rt.Fatalf("a failed read passed for %v", bodies(messages))
	}
}

func nobodyIgnored(context.Context) ([]string, error) { return nil, nil }

// sync does what the host does for one /sync, and compares.
func (m *model) sync(rt *rapid.T, deviceID string, since token) []string {
	device, q := types.Device{UserID: modelUser, DeviceID: deviceID}, m.queues[deviceID]
	position := m.module.SinceForSync(since.position)
	m.module.AcknowledgeSync(device, position)
	q.acknowledged = max(q.acknowledged, since.covers)

	messages, next, err := m.module.ReadForSync(m.ctx, device, position, m.module.LatestPosition(), nobodyIgnored)
	if err != nil {
		rt.Fatal(err)
	}
	got := bodies(messages)
	for i, message := range messages {
		if i > 0 && message.Position <= messages[i-1].Position {
			rt.Fatalf("position %d came after %d", message.Position, messages[i-1].Position)
		}
		q.see(rt, q.acknowledged+i, message.Position)
	}
	want := q.want()
	if !slices.Equal(got, want) {
		rt.Fatalf("device %s, since %+v:\n got %v\nwant %v", deviceID, since, got, want)
	}
	if next < since.position && position == since.position {
		rt.Fatalf("next_batch %d is behind since %d", next, since.position)
	}
	q.tokens = append(q.tokens, token{position: next, covers: q.acknowledged + len(want)})
	return got
}

// want returns what the next /sync brings.
func (q *queue) want() []string {
	return q.messages[q.acknowledged:min(len(q.messages), q.acknowledged+modelLimit)]
}

func bodies(messages []types.Message) []string {
	var all []string
	for _, message := range messages {
		all = append(all, message.Sender+message.Type+string(message.Content))
	}
	return all
}

// see checks that a message keeps the position it was first seen at.
func (q *queue) see(rt *rapid.T, i int, position types.Position) {
	for len(q.positions) <= i {
		q.positions = append(q.positions, 0)
	}
	if q.positions[i] != 0 && q.positions[i] != position {
		rt.Fatalf("a message moved from position %d to %d", q.positions[i], position)
	}
	q.positions[i] = position
}

// check runs after every action.
func (m *model) check(rt *rapid.T) {
	latest := m.module.LatestPosition()
	if latest < m.latest {
		rt.Fatalf("positions went back from %d to %d", m.latest, latest)
	}
	m.latest = latest
}
