package host

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	federationstorage "github.com/matrix-org/dendrite/federationapi/storage"
	"github.com/matrix-org/dendrite/federationapi/storage/shared/receipt"
	"github.com/matrix-org/dendrite/internal/caching"
	"github.com/matrix-org/dendrite/internal/sqlutil"
	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/syncapi/storage/postgres"
	"github.com/matrix-org/dendrite/syncapi/storage/sqlite3"
	"github.com/matrix-org/dendrite/syncapi/storage/tables"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule"
	"github.com/matrix-org/dendrite/todevicemodule/handover"
	"github.com/matrix-org/dendrite/todevicemodule/hosttest/pgtest"
	"github.com/matrix-org/dendrite/todevicemodule/outbox"
	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// foreignFixture is a host on an empty database, its own table of messages, and the module's view of it.
type foreignFixture struct {
	*testing.T
	d       *Dendrite
	section todevicemodule.DatabaseConfig
	queue   storage.ForeignQueue
	host    tables.SendToDevice
	store   storage.Store
}

// onBothDatabases runs a test on PostgreSQL and SQLite, with the module in the host's database and in one of its own.
func onBothDatabases(t *testing.T, test func(f *foreignFixture)) {
	for name, connect := range map[string]func(*testing.T) string{
		"postgres": func(t *testing.T) string { return pgtest.NewSchema(t) },
		"sqlite":   func(t *testing.T) string { return "file:" + filepath.Join(t.TempDir(), "test.db") },
	} {
		t.Run(name+", same database", func(t *testing.T) { test(newForeignFixture(t, connect(t), "")) })
		t.Run(name+", own database", func(t *testing.T) { test(newForeignFixture(t, connect(t), connect(t))) })
	}
}

func newForeignFixture(t *testing.T, connection, own string) *foreignFixture {
	t.Helper()
	cfg := &config.Dendrite{}
	for _, options := range []*config.DatabaseOptions{&cfg.SyncAPI.Database, &cfg.FederationAPI.Database} {
		*options = config.DatabaseOptions{ConnectionString: config.DataSource(connection), MaxOpenConnections: 2, MaxIdleConnections: 2}
	}
	f := &foreignFixture{
		T: t, section: todevicemodule.DatabaseConfig{ConnectionString: own, MaxOpenConns: 2, MaxIdleConns: 2},
		d: &Dendrite{config: cfg, cm: sqlutil.NewConnectionManager(nil, config.DatabaseOptions{}), log: quietLog()},
	}
	t.Cleanup(func() { f.d.closeDatabases(cfg.SyncAPI.Database, f.d.databaseOptions(f.section)) })
	var err error
	f.store, err = f.d.Store(f.section)
	f.must(err)
	f.must(f.store.Migrate(t.Context()))
	f.queue, err = f.d.ForeignQueue(f.section)
	f.must(err)
	f.must(f.queue.Prepare(t.Context()))
	db, _, err := f.d.cm.Connection(&cfg.SyncAPI.Database)
	f.must(err)
	if cfg.SyncAPI.Database.ConnectionString.IsSQLite() {
		f.host, err = sqlite3.NewSqliteSendToDeviceTable(db)
	} else {
		f.host, err = postgres.NewPostgresSendToDeviceTable(db)
	}
	f.must(err)
	return f
}

func (f *foreignFixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// stored has the host store a row, and returns its position.
func (f *foreignFixture) stored(userID, deviceID, content string) types.Position {
	f.Helper()
	var id synctypes.StreamPosition
	f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) (err error) {
		id, err = f.host.InsertSendToDeviceMessage(ctx, tx, userID, deviceID, content)
		return err
	}))
	return types.Position(id)
}

// sent has the host store a message as it does.
func (f *foreignFixture) sent(userID, content string) types.Position {
	f.Helper()
	event, err := json.Marshal(gomatrixserverlib.SendToDeviceEvent{Sender: "@alice:test", Type: "m.test", Content: json.RawMessage(content)})
	f.must(err)
	return f.stored(userID, "PHONE", string(event))
}

// handedOut returns what the host would put into a /sync response.
func (f *foreignFixture) handedOut(userID string) []synctypes.SendToDeviceEvent {
	f.Helper()
	_, events, err := f.host.SelectSendToDeviceMessages(f.Context(), nil, userID, "PHONE", 0, 1<<62)
	f.must(err)
	return events
}

func (f *foreignFixture) waiting(userID string) []types.Message {
	f.Helper()
	messages, err := f.store.Messages(f.Context(), types.Device{UserID: userID, DeviceID: "PHONE"}, 0, 1<<62, 1000, nil)
	f.must(err)
	return messages
}

func (f *foreignFixture) rows() (rows int) {
	f.Helper()
	f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) (err error) {
		rows, err = f.queue.Hold(ctx, tx)
		return err
	}))
	return rows
}

func (f *foreignFixture) given() (given types.Position) {
	f.Helper()
	f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) (err error) {
		given, err = f.queue.Given(ctx, tx)
		return err
	}))
	return given
}

func (f *foreignFixture) raise(atLeast types.Position) (last types.Position) {
	f.Helper()
	f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) (err error) {
		last, err = f.queue.Raise(ctx, tx, atLeast)
		return err
	}))
	return last
}

const content = `{"z":1,"a":"<&> ","body":"` + "\u2028\U0001F40E" + `","e":1e400}`

func TestMessagesComeFromTheHostAndGoBack(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		var want []types.Position
		for range 3 {
			want = append(want, f.sent("@bob:test", content))
			f.sent("@carol:test", `{}`)
		}
		left := []types.Position{}
		for _, unreadable := range []string{
			``, `null`, `[]`, `"text"`, `{`, `{}`, `{"sender":"@a:test","type":"t"}`, `{"sender":"@a:test","type":"t","content":null}`,
			`{"sender":"@a:test","type":"t","content":[]}`, `{"sender":1,"type":"t","content":{}}`,
			`{"sender":"@a:test","type":"t","content":{}} x`,
			`{"sender":"@a:test","type":"t","content":` + strings.Repeat(`{"a":`, 9000) + `1` + strings.Repeat(`}`, 9001),
		} {
			left = append(left, f.stored("@bob:test", "PHONE", unreadable))
		}
		want = append(want, f.sent("@bob:test", content))
		before := f.handedOut("@bob:test")

		imported, err := f.store.Import(f.Context(), f.queue, func(int, int) {})
		f.must(err)
		if imported != (storage.Imported{Messages: 7, Unreadable: len(left), Through: want[3]}) {
			f.Errorf("the import did %+v", imported)
		}
		messages := f.waiting("@bob:test")
		for i, m := range messages {
			if i >= len(want) || m.Position != want[i] || m.Sender != "@alice:test" || m.Type != "m.test" || !sameJSON(m.Content, content) {
				f.Errorf("message %d is %+v", i, m)
			}
		}
		if len(messages) != len(want) {
			f.Errorf("%d messages were imported, want %d", len(messages), len(want))
		}
		if rows := f.rows(); rows != len(left) {
			f.Errorf("%d rows are left, want the %d that can't be read", rows, len(left))
		}

		exported, err := f.store.Export(f.Context(), f.queue, func(int, int) {})
		f.must(err)
		if exported != (storage.Exported{Messages: 7, Devices: 2}) {
			f.Errorf("the export did %+v", exported)
		}
		after := f.handedOut("@bob:test")
		same := func(a, b synctypes.SendToDeviceEvent) bool {
			return a.ID == b.ID && a.Sender == b.Sender && a.Type == b.Type && sameJSON(a.Content, string(b.Content))
		}
		if !slices.EqualFunc(before, after, same) {
			f.Errorf("the host hands out %+v, before it was %+v", after, before)
		}
		if next := f.sent("@bob:test", `{}`); next <= want[3] {
			f.Errorf("the host goes on at %d, after %d", next, want[3])
		}
	})
}

// sameJSON compares all but the escapes that the host puts into whatever it stores.
func sameJSON(a []byte, b string) bool {
	unescape := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&", `\u2028`, "\u2028")
	return unescape.Replace(string(a)) == unescape.Replace(b)
}

// What is there already is passed over, and what another device's message stands in the way of is returned.
func TestInsertIntoTheHostsQueue(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		var messages []storage.Queued
		for i := range types.Position(6) {
			messages = append(messages, storage.Queued{
				Device:  types.Device{UserID: "@bob:test", DeviceID: []string{"PHONE", "LAPTOP"}[i%2]},
				Message: types.Message{Position: i + 10, Sender: "@alice:test", Type: "m.test", Content: []byte(`{}`)},
			})
		}
		insert := func(messages []storage.Queued, want ...types.Position) {
			f.Helper()
			f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) error {
				taken, err := f.queue.Insert(ctx, tx, messages)
				var got []types.Position
				for i := range taken {
					got = append(got, taken[i].Position)
				}
				if !slices.Equal(got, want) {
					f.Errorf("taken are %v, want %v", got, want)
				}
				return err
			}))
		}
		insert(messages[:4])
		insert(messages[2:])
		messages[1].DeviceID, messages[4].UserID = "PHONE", "@carol:test"
		insert(messages, 11, 14)
		insert(nil)
		if rows := f.rows(); rows != 6 {
			f.Errorf("there are %d rows, want 6", rows)
		}
	})
}

// A page ends at its limits, however large a row is.
func TestPagesOfTheHostsQueue(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		var ids []types.Position
		for i := range 6 {
			ids = append(ids, f.sent("@bob:test", fmt.Sprintf(`{"x":%q}`, strings.Repeat("x", []int{1, 1, 5000, 1, 1, 1}[i]))))
		}
		for _, c := range []struct {
			after           types.Position
			limit, maxBytes int
			want            []types.Position
		}{
			{0, 3, 1 << 20, ids[:3]}, {0, 10, 1000, ids[:2]}, {ids[1], 10, 1000, ids[2:3]}, {ids[2], 10, 1000, ids[3:]},
			{ids[5], 10, 1000, nil}, {0, 1, 1, ids[:1]}, {0, 100, 1 << 20, ids},
		} {
			f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) error {
				page, err := f.queue.Page(ctx, tx, c.after, c.limit, c.maxBytes)
				var got []types.Position
				for i := range page.Messages {
					got = append(got, page.Messages[i].Position)
				}
				if !slices.Equal(got, c.want) || page.Rows != len(c.want) || len(c.want) > 0 && page.Through != c.want[len(c.want)-1] {
					f.Errorf("after %d, limits %d and %d: got %v, %d rows through %d, want %v",
						c.after, c.limit, c.maxBytes, got, page.Rows, page.Through, c.want)
				}
				return err
			}))
		}
	})
}

// The host's sequence tells whether the host gave out positions by itself.
func TestHostsSequence(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		if given := f.given(); given != 0 {
			f.Fatalf("a new host gave out %d", given)
		}
		f.sent("@bob:test", `{}`)
		second := f.sent("@bob:test", `{}`)
		if given := f.given(); given != second {
			f.Fatalf("the host gave out %d, but says %d", second, given)
		}
		now := types.Position(time.Now().UnixMicro())
		last := f.raise(now)
		if last < now || last > now+ownStep || f.given() != 0 {
			f.Fatalf("raised to %d for %d, given %d", last, now, f.given())
		}
		if again := f.raise(now - 5); again != last {
			f.Errorf("raised to %d and then to %d", last, again)
		}
		if again := f.raise(now - 3*ownStep); again != last {
			f.Errorf("raised to %d and then back to %d", last, again)
		}
		if again := f.raise(last); again != last {
			f.Errorf("raised to %d where it was %d already", again, last)
		}
		if next := f.sent("@bob:test", `{}`); next <= last || f.given() != next {
			f.Errorf("the host gave out %d and says %d, after it was raised to %d", next, f.given(), last)
		}
		if last = f.raise(1<<63 - 1); last < 1<<62 {
			f.Errorf("raised to %d for the largest position", last)
		}
		next := f.sent("@bob:test", `{}`)
		if again := f.raise(1<<63 - 1); again < next {
			f.Errorf("raised back to %d from %d", again, next)
		}
	})
}

// A first message of all raises too.
func TestHostsSequenceWithoutMessages(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		last := f.raise(1)
		if next := f.sent("@bob:test", `{}`); next != last+1 || last < 1 {
			f.Errorf("the host gave out %d after it was raised to %d", next, last)
		}
	})
}

// The module's positions begin after all that the host gave out, and the host's go on after the module's; nothing moves ahead of
// the clock by starts alone.
func TestHandoverOnRealTables(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		var last types.Position
		start := func() types.Position {
			f.Helper()
			h := handover.New(handover.Options{Store: f.store, Queue: f.queue, Log: quietLog(), Last: func() types.Position { return last }})
			atLeast, err := h.Prepare(f.Context())
			f.must(err)
			last, err = f.store.Claim(f.Context(), "test", max(atLeast, types.Position(time.Now().UnixMicro())))
			f.must(err)
			f.must(h.Start(f.Context()))
			h.Stop(f.Context())
			if rows := f.rows(); rows > 0 {
				f.Errorf("%d rows are left in the host's table", rows)
			}
			return atLeast
		}
		first := f.sent("@bob:test", `{"n":1}`)
		if atLeast := start(); atLeast < first {
			f.Errorf("the first position is above %d, but the host gave out %d", atLeast, first)
		}
		for range 3 {
			if atLeast := start(); atLeast != 0 {
				f.Errorf("a start after another asks for %d", atLeast)
			}
		}
		if now := types.Position(time.Now().UnixMicro()); last > now {
			f.Errorf("the position %d is ahead of the clock, %d", last, now)
		}
		for range 3 { // without the module, and with it again
			next := f.sent("@bob:test", `{"n":2}`)
			if next <= last || next < types.Position(time.Now().Add(time.Hour-time.Minute).UnixMicro()) {
				f.Errorf("the host goes on at %d, after %d", next, last)
			}
			f.must(f.queue.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) error {
				return f.host.DeleteSendToDeviceMessages(ctx, tx, "@bob:test", "PHONE", synctypes.StreamPosition(next))
			}))
			if atLeast := start(); atLeast < next || last < next {
				f.Errorf("the first position is above %d, but the host gave out %d", last, next)
			}
		}
	})
}

// The host finds what it is given in its queues, and nothing twice.
func TestEDUsGoToTheHost(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		base, err := f.d.foreign(f.section, f.d.config.FederationAPI.Database)
		f.must(err)
		foreign := base.outbox()
		f.must(foreign.Prepare(f.Context()))
		cache := caching.NewRistrettoCache(1<<20, time.Hour, false)
		db, err := federationstorage.NewDatabase(f.Context(), f.d.cm, &f.d.config.FederationAPI.Database, cache, func(spec.ServerName) bool { return false })
		f.must(err)
		var edus []storage.EDU
		for i := range 5 {
			edus = append(edus, storage.EDU{
				Destination: "remote.test", Position: types.Position(i), Origin: "test", MessageID: fmt.Sprint("id", i),
				Content: fmt.Appendf(nil, `{"message_id":"id%d","messages":{"@bob:remote.test":{"*":%s}},"sender":"@alice:test","type":"m.test"}`, i, content),
			})
		}
		insert := func(edus []storage.EDU, look bool, want int) {
			f.Helper()
			f.must(foreign.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) error {
				added, err := foreign.Insert(ctx, tx, "remote.test", edus, look)
				if added != want {
					f.Errorf("%d EDUs were added, want %d", added, want)
				}
				return err
			}))
		}
		insert(edus[:3], true, 3)
		insert(edus[1:5], true, 2)
		insert(nil, true, 0)
		f.must(foreign.Transact(f.Context(), func(ctx context.Context, tx *sql.Tx) error {
			_, err := foreign.Insert(ctx, tx, "elsewhere.test", edus[:1], true)
			return err
		}))
		ringing, err := db.StoreJSON(f.Context(), fmt.Sprintf(
			`{"edu_type":"m.direct_to_device","origin":"test","content":{"type":%q,"sender":"@doorbell:test"}}`, outbox.DoorbellType))
		f.must(err)
		quoting, err := db.StoreJSON(f.Context(), fmt.Sprintf(
			`{"edu_type":"m.direct_to_device","origin":"test","content":{"type":"m.test","body":%q}}`, outbox.DoorbellType))
		f.must(err)
		for _, nid := range []*receipt.Receipt{ringing, quoting} {
			f.must(db.AssociateEDUWithDestinations(f.Context(), map[spec.ServerName]struct{}{"remote.test": {}}, nid, spec.MDirectToDevice, nil))
		}
		f.must(base.removeDoorbells(f.Context()))

		for destination, want := range map[spec.ServerName]int{"remote.test": 6, "elsewhere.test": 1} {
			pending, err := db.GetPendingEDUs(f.Context(), destination, 100)
			f.must(err)
			if len(pending) != want {
				f.Errorf("%d EDUs wait for %s, want %d", len(pending), destination, want)
			}
			for _, edu := range pending {
				var got struct {
					MessageID string `json:"message_id"`
					Type      string
				}
				f.must(json.Unmarshal(edu.Content, &got))
				if edu.Type != spec.MDirectToDevice || edu.Origin != "test" || got.Type != "m.test" {
					f.Errorf("an EDU waits: %+v", edu)
				}
				i := slices.IndexFunc(edus, func(e storage.EDU) bool { return e.MessageID == got.MessageID })
				if got.MessageID != "" && (i < 0 || string(edu.Content) != string(edus[i].Content)) {
					f.Errorf("an EDU waits with content %s", edu.Content)
				}
			}
		}
		f.must(db.DeleteExpiredEDUs(f.Context()))
		if pending, err := db.GetPendingEDUs(f.Context(), "remote.test", 100); err != nil || len(pending) != 6 {
			f.Errorf("%d EDUs are left by the host's clean-up, error %v", len(pending), err)
		}
	})
}

func TestSameDatabase(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct {
		a, b config.DataSource
		want bool
	}{
		{"postgres://a", "postgres://a", true},
		{"postgres://a", "postgres://b", false},
		{"postgres://a", "file:a.db", false},
		{"file:a.db", "file:a.db", true},
		{"file:a.db", "file:./a.db", true},
		{"file:a.db", "file:b.db", false},
	} {
		if got := sameDatabase(c.a, c.b); got != c.want {
			t.Errorf("%s and %s are the same database: %t, want %t", c.a, c.b, got, c.want)
		}
	}
}

// An export that finds the lock taken changes nothing, and one without tables makes none.
func TestExportNeedsTheLock(t *testing.T) {
	onBothDatabases(t, func(f *foreignFixture) {
		lock, err := f.store.Lock(f.Context())
		f.must(err)
		if _, err = f.export(); !errors.Is(err, storage.ErrLocked) {
			f.Errorf("the error is %v", err)
		}
		f.must(lock.Release())
		if report, err := f.export(); err != nil || report.Nothing {
			f.Errorf("the export reports %+v, error %v", report, err)
		}
	})
}
