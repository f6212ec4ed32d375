package host

import (
	"cmp"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapitypes "github.com/matrix-org/dendrite/userapi/api"
	"github.com/tidwall/gjson"
)

// envSeed names the environment variable with the seed of the random tests, to repeat a failure.
const envSeed = "TODEVICE_TEST_SEED"

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv(envSeed); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s=%d", envSeed, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// comparison asks both twins for the same.
type comparison struct {
	*traffic
	host, module *twin
	tokens       map[*userapitypes.Device][]string
	filters      map[*userapitypes.Device]string
	seen         map[string]int
}

func newComparison(m *monolith) *comparison {
	c := &comparison{
		traffic: newTraffic(m, newRand(m.T)), host: m.hostTwin(), module: m.moduleTwin(),
		tokens: map[*userapitypes.Device][]string{}, filters: map[*userapitypes.Device]string{}, seen: map[string]int{},
	}
	for _, device := range c.devices {
		stored := m.must(device, "POST", "/user/"+url.PathEscape(device.UserID)+"/filter", object{
			"room": object{"timeline": object{"limit": 2}, "state": object{"lazy_load_members": true, "not_types": []string{"m.room.topic"}}},
		})
		c.filters[device] = stored.Get("filter_id").Str
	}
	return c
}

// query makes up the parameters of a /sync.
func (c *comparison) query(device *userapitypes.Device) url.Values {
	query := url.Values{}
	tokens := c.tokens[device]
	switch n := c.rand.IntN(20); {
	case n == 0 || len(tokens) == 0:
	case n < 14:
		query.Set("since", tokens[len(tokens)-1])
	case n < 18:
		query.Set("since", pick(c.rand, tokens))
	default:
		query.Set("since", mixed(c.rand, pick(c.rand, tokens), tokens[len(tokens)-1]))
	}
	switch c.rand.IntN(8) {
	case 0:
		query.Set("filter", c.filters[device])
	case 1:
		query.Set("filter", `{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":3}}}`)
	case 2:
		query.Set("filter", `{"event_format":"federation","room":{"timeline":{"limit":1,"not_types":["m.room.topic"]}}}`)
	case 3:
		query.Set("filter", `{"account_data":{"not_types":["test.data"]},"room":{"state":{"lazy_load_members":true,"include_redundant_members":true}}}`)
	}
	if c.rand.IntN(10) == 0 {
		query.Set("full_state", "true")
	}
	if c.rand.IntN(4) == 0 {
		query.Set("timeout", "20")
	}
	if presence := c.rand.IntN(6); presence < 3 {
		query.Set("set_presence", []string{"online", "unavailable", "offline"}[presence])
	}
	return query
}

// mixed returns the first token with some positions of the second one, since each stream must do without the others.
func mixed(random *rand.Rand, first, second string) string {
	positions, others := strings.Split(first, "_"), strings.Split(second, "_")
	for i := range positions {
		if random.IntN(2) == 0 && i > 0 {
			positions[i] = others[i]
		}
	}
	return strings.Join(positions, "_")
}

// askAll asks for every device, with its last token.
func (c *comparison) askAll(after string) {
	c.Helper()
	for _, device := range c.devices {
		query := url.Values{}
		if tokens := c.tokens[device]; len(tokens) > 0 {
			query.Set("since", tokens[len(tokens)-1])
		}
		c.ask(device, query, after)
	}
}

// ask fails the test unless both twins give the same answer.
func (c *comparison) ask(device *userapitypes.Device, query url.Values, after string) {
	c.Helper()
	position := c.sync.providers.Latest(c.Context())
	c.host.catchUp(position)
	c.module.catchUp(position)
	typing := c.sync.typing.GetLatestSyncPosition()
	hostCode, hostBody, err := c.host.get(c.Context(), device, query)
	if err != nil {
		c.Fatal(err)
	}
	code, body, err := c.module.get(c.Context(), device, query)
	if err != nil {
		c.Fatal(err)
	}
	if now := c.sync.providers.Latest(c.Context()); now != position || c.sync.typing.GetLatestSyncPosition() != typing {
		c.Fatalf("the server went on from %v to %v between two answers, after %s", position, now, after)
	}
	c.same(device, query, after, hostCode, code, hostBody, body)
	if token := gjson.GetBytes(hostBody, "next_batch").Str; token != "" {
		c.tokens[device] = append(c.tokens[device], token)
	}
}

func (c *comparison) same(device *userapitypes.Device, query url.Values, after string, hostCode, code int, hostBody, body []byte) {
	c.Helper()
	if query.Get("since") == "" && hostCode == http.StatusOK {
		hostBody = c.withKeyCounts(device, hostBody)
	}
	want, got := normalise(c.T, hostBody), normalise(c.T, body)
	if hostCode != code || want != got {
		c.Fatalf("/sync?%s of %s %s after %s\nis %d %s\nunmodified %d %s", query.Encode(), device.UserID, device.ID, after, code, difference(got, want), hostCode, difference(want, got))
	}
	c.note(hostBody)
}

// withKeyCounts adds to an answer of the host's what it says of the device's keys in every other one (addKeyCounts).
func (c *comparison) withKeyCounts(device *userapitypes.Device, body []byte) []byte {
	c.Helper()
	snapshot, err := c.sync.db.NewDatabaseSnapshot(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	defer snapshot.Rollback() //nolint:errcheck
	req := &synctypes.SyncRequest{Context: c.Context(), Log: c.log, Device: device, Response: synctypes.NewResponse()}
	stream := c.host.providers.DeviceListStreamProvider
	latest := stream.LatestPosition(c.Context())
	stream.IncrementalSync(c.Context(), snapshot, req, latest, latest)
	counted, err := json.Marshal(req.Response)
	if err != nil {
		c.Fatal(err)
	}
	var answer map[string]json.RawMessage
	if err = json.Unmarshal(body, &answer); err != nil {
		c.Fatal(err)
	}
	for _, key := range []string{"device_one_time_keys_count", "device_unused_fallback_key_types"} {
		if value := gjson.GetBytes(counted, key); value.Exists() {
			answer[key] = json.RawMessage(value.Raw)
		}
	}
	if body, err = json.Marshal(answer); err != nil {
		c.Fatal(err)
	}
	return body
}

// difference returns the lines of a that are not in b.
func difference(a, b string) string {
	lines := strings.Split(b, "\n")
	only := slices.DeleteFunc(strings.Split(a, "\n"), func(line string) bool { return slices.Contains(lines, line) })
	return cmp.Or(strings.Join(only, "\n"), "(the same lines in another order)") + "\n"
}

// note counts what was in an answer.
func (c *comparison) note(body []byte) {
	c.seen["answer"]++
	for part, path := range map[string]string{
		"state": "rooms.join.*.state.events.0", "timeline": "rooms.join.*.timeline.events.0", "limited": "rooms.join.*.timeline.limited",
		"unread": "rooms.join.*.unread_notifications.notification_count",
		"typing": `rooms.join.*.ephemeral.events.#(type=="m.typing")`, "receipt": `rooms.join.*.ephemeral.events.#(type=="m.receipt")`,
		"room account data": "rooms.join.*.account_data.events.0", "summary": "rooms.join.*.summary.m\\.joined_member_count",
		"invite": "rooms.invite.*", "leave": "rooms.leave.*", "peek": "rooms.peek.*",
		"account data": "account_data.events.0", "presence": "presence.events.0", "to-device": "to_device.events.0",
		"changed": "device_lists.changed.0", "left": "device_lists.left.0", "one-time keys": "device_one_time_keys_count.signed_curve25519",
		"kinds of fallback keys": "device_unused_fallback_key_types", "fallback key": "device_unused_fallback_key_types.0",
	} {
		if found := values(gjson.ParseBytes(body), path); slices.ContainsFunc(found, func(v gjson.Result) bool { return v.Exists() && v.Raw != "0" && v.Raw != "false" }) {
			c.seen[part]++
		}
	}
	if root := gjson.ParseBytes(body); !root.Get("rooms").Exists() && !root.Get("account_data").Exists() && !root.Get("presence").Exists() {
		c.seen["nothing"]++
	}
}

// values is gjson's Get, but that a "*" stands for every room.
func values(root gjson.Result, path string) []gjson.Result {
	section, rest, found := strings.Cut(path, ".*")
	if !found {
		return []gjson.Result{root.Get(path)}
	}
	var all []gjson.Result
	root.Get(section).ForEach(func(_, room gjson.Result) bool {
		if rest == "" {
			all = append(all, room)
			return true
		}
		all = append(all, room.Get(strings.TrimPrefix(rest, ".")))
		return true
	})
	return all
}

func TestSyncAnswersAsTheHostDoes(t *testing.T) {
	const steps = 200
	onBothMonoliths(t, func(m *monolith) {
		c := newComparison(m)
		c.askAll("the start")
		for _, device := range c.devices {
			m.call(c.devices[0], "POST", "/rooms/"+url.PathEscape(c.rooms[2])+"/invite", object{"user_id": device.UserID})
			m.call(device, "POST", "/peek/"+url.PathEscape(c.rooms[1]), object{})
		}
		m.settle()
		c.askAll("invites and peeks")
		// By chance nobody may type, or everybody stop to.
		typing := "/rooms/" + url.PathEscape(c.rooms[0]) + "/typing/" + url.PathEscape(c.devices[0].UserID)
		m.must(c.devices[0], "PUT", typing, object{"typing": true, "timeout": 600_000})
		m.settle()
		c.askAll("typing")
		// Alone, each of these moves few of the streams: the others must do without.
		c.message(c.devices[0], c.rooms[0])
		acts := c.acts(c.devices[0], c.devices[2], c.rooms[0])
		for _, name := range names(acts) {
			m.settle()
			c.askAll("before " + name)
			acts[name]()
			m.settle()
			c.askAll(name)
		}
		for range steps {
			after := c.happens()
			for c.rand.IntN(4) == 0 {
				after += ", " + c.happens()
			}
			c.settle()
			for range 1 + c.rand.IntN(3) {
				device := c.device()
				c.ask(device, c.query(device), after)
			}
		}
		if host, module := c.host.presence.all(), c.module.presence.all(); !slices.Equal(host, module) {
			m.Errorf("presence was set to %v, by the host to %v", module, host)
		}
		m.Logf("compared: %v", c.seen)
		for _, part := range []string{
			"state", "timeline", "limited", "unread", "typing", "receipt", "room account data", "summary", "invite", "leave", "peek",
			"account data", "presence", "to-device", "changed", "left", "one-time keys", "nothing",
		} {
			if c.seen[part] == 0 {
				m.Errorf("no answer had anything of: %s", part)
			}
		}
		if c.seen["kinds of fallback keys"] > 0 && c.seen["fallback key"] == 0 {
			m.Error("the host tells of fallback keys, and no answer had one")
		}
	})
}

// Each of these things is announced once, so that both find the server in the same state when they wake.
func TestWaitingSyncAnswersAsTheHostDoes(t *testing.T) {
	onBothMonoliths(t, func(m *monolith) {
		c := newComparison(m)
		bob, alice := c.devices[2], c.devices[0]
		room := "/rooms/" + url.PathEscape(c.rooms[0])
		for range 3 {
			for after, happens := range map[string]func(){
				"typing": func() {
					m.must(alice, "PUT", room+"/typing/"+url.PathEscape(alice.UserID), object{"typing": true, "timeout": 600_000})
				},
				"account data": func() {
					m.must(bob, "PUT", "/user/"+url.PathEscape(bob.UserID)+"/account_data/test.data", object{"n": c.next()})
				},
				"to-device": func() {
					m.must(alice, "PUT", "/sendToDevice/m.test/"+c.next(), object{"messages": object{bob.UserID: object{bob.ID: object{"n": c.next()}}}})
				},
				"device keys": func() { c.uploadDeviceKeys(alice) },
				"presence": func() {
					m.must(alice, "PUT", "/presence/"+url.PathEscape(alice.UserID)+"/status", object{"presence": "online", "status_msg": c.next()})
				},
			} {
				m.settle()
				c.askAll("before " + after)
				c.wait(bob, after, happens)
			}
		}
		for _, part := range []string{"typing", "account data", "to-device", "changed", "presence"} {
			if c.seen[part] < 3 {
				m.Errorf("%d answers had anything of: %s", c.seen[part], part)
			}
		}
	})
}

// wait fails the test unless both twins, waiting for something to happen, give the same answer to it.
func (c *comparison) wait(device *userapitypes.Device, after string, happens func()) {
	c.Helper()
	tokens := c.tokens[device]
	query := url.Values{"since": {tokens[len(tokens)-1]}, "timeout": {"30000"}}
	type answer struct {
		code int
		body []byte
		err  error
	}
	answers := [2]chan answer{make(chan answer, 1), make(chan answer, 1)}
	for i, t := range []*twin{c.host, c.module} {
		polled := make(chan struct{})
		t.db.onPoll(func() { close(polled) })
		go func() {
			code, body, err := t.get(c.Context(), device, query)
			answers[i] <- answer{code, body, err}
		}()
		<-polled
		t.db.onPoll(func() {})
	}
	select {
	case early := <-answers[0]:
		c.Fatalf("did not wait for %s: %s", after, early.body)
	case early := <-answers[1]:
		c.Fatalf("did not wait for %s: %s", after, early.body)
	case <-time.After(50 * time.Millisecond):
	}
	happens()
	host, module := <-answers[0], <-answers[1]
	if err := errors.Join(host.err, module.err); err != nil {
		c.Fatal(err)
	}
	c.same(device, query, after, host.code, module.code, host.body, module.body)
}

func TestIdleSyncOpensNoTransaction(t *testing.T) {
	onBothMonoliths(t, func(m *monolith) {
		c := newComparison(m)
		bob := c.devices[2]
		c.askAll("the start")
		c.askAll("the first answer")
		snapshots := func(after string) int {
			m.settle()
			before := c.module.db.opened()
			tokens := c.tokens[bob]
			c.ask(bob, url.Values{"since": {tokens[len(tokens)-1]}}, after)
			return c.module.db.opened() - before
		}
		if n := snapshots("nothing"); n != 0 || c.seen["nothing"] == 0 {
			m.Errorf("with nothing new it opened %d transactions", n)
		}
		for range 100 {
			m.must(c.devices[0], "PUT", "/sendToDevice/m.test/"+c.next(), object{"messages": object{bob.UserID: object{bob.ID: object{}}}})
		}
		if n := snapshots("100 messages"); n != 0 || c.seen["to-device"] == 0 {
			m.Errorf("with 100 messages waiting it opened %d transactions", n)
		}
		c.message(c.devices[0], c.rooms[0])
		if n := snapshots("an event"); n == 0 {
			m.Error("it read an event without a transaction")
		}
	})
}
