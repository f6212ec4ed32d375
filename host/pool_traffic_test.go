package host

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	userapitypes "github.com/matrix-org/dendrite/userapi/api"
)

// traffic makes up what users do on a server. What the server refuses, such as a kick by somebody who may not, is part of it.
type traffic struct {
	*monolith
	rand    *rand.Rand
	devices []*userapitypes.Device
	rooms   []string
	events  map[string][]string // messages by room
	made    int
}

func newTraffic(m *monolith, random *rand.Rand) *traffic {
	t := &traffic{monolith: m, rand: random, events: map[string][]string{}}
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		t.devices = append(t.devices, m.newDevice(name, "PHONE"), m.newDevice(name, "LAPTOP"))
	}
	t.createRoom(t.devices[0], "public_chat", "shared")
	t.createRoom(t.devices[0], "public_chat", "world_readable")
	t.createRoom(t.devices[0], "private_chat", "shared")
	for _, device := range t.devices {
		if device.ID == "PHONE" {
			m.must(device, "POST", "/join/"+url.PathEscape(t.rooms[0]), object{})
		}
	}
	m.settle()
	return t
}

type object = map[string]any

func (t *traffic) device() *userapitypes.Device { return pick(t.rand, t.devices) }
func (t *traffic) room() string                 { return pick(t.rand, t.rooms) }

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// next returns a number that was not used before.
func (t *traffic) next() string {
	t.made++
	return strconv.Itoa(t.made)
}

func (t *traffic) createRoom(device *userapitypes.Device, preset, visibility string) {
	room := t.must(device, "POST", "/createRoom", object{
		"preset": preset, "name": "room " + t.next(),
		"initial_state": []object{{"type": "m.room.history_visibility", "content": object{"history_visibility": visibility}}},
	})
	t.rooms = append(t.rooms, room.Get("room_id").Str)
}

// happens does one thing, and returns what it was.
func (t *traffic) happens() string {
	device, other, room := t.device(), t.device(), t.room()
	acts := t.acts(device, other, room)
	name := pick(t.rand, names(acts))
	acts[name]()
	return fmt.Sprintf("%s by %s %s (%s, %s)", name, device.UserID, device.ID, other.UserID, room)
}

// names is sorted, so that a seed always gives the same traffic.
func names(acts map[string]func()) []string { return slices.Sorted(maps.Keys(acts)) }

// acts returns what a device can do in a room, or with another device.
func (t *traffic) acts(device, other *userapitypes.Device, room string) map[string]func() {
	inRoom := "/rooms/" + url.PathEscape(room)
	aboutUser := "/user/" + url.PathEscape(device.UserID)
	membership := func(action string) {
		t.call(device, "POST", inRoom+"/"+action, object{"user_id": other.UserID})
	}
	return map[string]func(){
		"message": func() { t.message(device, room) },
		"state": func() {
			t.call(device, "PUT", inRoom+"/state/"+pick(t.rand, []string{"m.room.topic", "test.state"})+"/", object{"topic": t.next()})
		},
		"display name": func() {
			t.call(device, "PUT", "/profile/"+url.PathEscape(device.UserID)+"/displayname", object{"displayname": "name " + t.next()})
		},
		"join":    func() { t.call(device, "POST", inRoom+"/join", object{}) },
		"leave":   func() { t.call(device, "POST", inRoom+"/leave", object{}) },
		"forget":  func() { t.call(device, "POST", inRoom+"/forget", object{}) },
		"peek":    func() { t.call(device, "POST", "/peek/"+url.PathEscape(room), object{}) },
		"unpeek":  func() { t.call(device, "POST", inRoom+"/unpeek", object{}) },
		"invite":  func() { membership("invite") },
		"kick":    func() { membership("kick") },
		"ban":     func() { membership("ban") },
		"unban":   func() { membership("unban") },
		"redact":  func() { t.aboutEvent(device, room, "PUT", inRoom+"/redact/{event}/"+t.next(), object{}) },
		"receipt": func() { t.aboutEvent(device, room, "POST", inRoom+"/receipt/m.read/{event}", object{}) },
		"private receipt": func() {
			t.aboutEvent(device, room, "POST", inRoom+"/receipt/m.read.private/{event}", object{})
		},
		"typing": func() {
			t.call(device, "PUT", inRoom+"/typing/"+url.PathEscape(device.UserID), object{"typing": t.rand.IntN(3) > 0, "timeout": 600_000})
		},
		"typing that ends": func() { t.typesForAMoment(device, room) },
		"presence": func() {
			t.call(device, "PUT", "/presence/"+url.PathEscape(device.UserID)+"/status",
				object{"presence": pick(t.rand, []string{"online", "unavailable", "offline"}), "status_msg": t.next()})
		},
		"account data": func() { t.call(device, "PUT", aboutUser+"/account_data/test.data", object{"n": t.next()}) },
		"room account data": func() {
			t.call(device, "PUT", aboutUser+inRoom+"/account_data/test.data", object{"n": t.next()})
		},
		"tag": func() { t.call(device, "PUT", aboutUser+inRoom+"/tags/m.favourite", object{"order": t.rand.Float64()}) },
		"ignore": func() {
			ignored := object{}
			if t.rand.IntN(2) == 0 {
				ignored[other.UserID] = object{}
			}
			t.call(device, "PUT", aboutUser+"/account_data/m.ignored_user_list", object{"ignored_users": ignored})
		},
		"device keys":   func() { t.uploadDeviceKeys(device) },
		"one-time keys": func() { t.uploadKeysToClaim(device) },
		"claim": func() {
			t.call(device, "POST", "/keys/claim", object{"one_time_keys": object{other.UserID: object{other.ID: "signed_curve25519"}}})
		},
		"to-device": func() {
			t.call(device, "PUT", "/sendToDevice/m.test/"+t.next(), object{"messages": object{other.UserID: object{"*": object{"n": t.next()}}}})
		},
		"sync": func() {
			t.call(device, "GET", "/sync?set_presence="+pick(t.rand, []string{"online", "unavailable"}), nil)
		},
		"room": func() {
			if len(t.rooms) < 6 {
				t.createRoom(device, pick(t.rand, []string{"public_chat", "private_chat"}), pick(t.rand, []string{"shared", "world_readable"}))
			}
		},
		"nothing": func() {},
	}
}

func (t *traffic) uploadDeviceKeys(device *userapitypes.Device) {
	t.call(device, "POST", "/keys/upload", object{"device_keys": object{
		"user_id": device.UserID, "device_id": device.ID, "algorithms": []string{"test"},
		"keys": object{"ed25519:" + device.ID: t.next()}, "signatures": object{},
	}})
}

func (t *traffic) message(device *userapitypes.Device, room string) {
	_, answer := t.call(device, "PUT", "/rooms/"+url.PathEscape(room)+"/send/m.room.message/"+t.next(), object{"msgtype": "m.text", "body": t.next()})
	if id := answer.Get("event_id").Str; id != "" {
		t.events[room] = append(t.events[room], id)
	}
}

// aboutEvent calls a path that names an event.
func (t *traffic) aboutEvent(device *userapitypes.Device, room, method, path string, body any) {
	if len(t.events[room]) == 0 {
		t.message(device, room)
		return
	}
	t.call(device, method, strings.Replace(path, "{event}", url.PathEscape(pick(t.rand, t.events[room])), 1), body)
}

// typesForAMoment returns when the host has taken back that the device's user is typing, which it refuses to users who are not in the
// room. Of a moment that is almost over when the host hears of it, it may miss the end: then there is another one.
func (t *traffic) typesForAMoment(device *userapitypes.Device, room string) {
	const moment, missed, moments = 200, 2 * time.Second, 20
	path := "/rooms/" + url.PathEscape(room) + "/typing/" + url.PathEscape(device.UserID)
	isTyping := func() bool { return slices.Contains(t.sync.typing.GetTypingUsers(room), device.UserID) }
	for range moments {
		if code, _ := t.call(device, "PUT", path, object{"typing": false}); code != http.StatusOK {
			return
		}
		t.call(device, "PUT", path, object{"typing": true, "timeout": moment})
		t.settle()
		for begun := time.Now(); isTyping() && time.Since(begun) < missed; {
			time.Sleep(time.Millisecond)
		}
		if !isTyping() {
			return
		}
	}
	t.Fatalf("the host missed the end of each of %d moments", moments)
}

func (t *traffic) uploadOneTimeKeys(device *userapitypes.Device) {
	keys := object{}
	for range 3 {
		keys["signed_curve25519:"+t.next()] = object{"key": "k", "signatures": object{}}
	}
	t.call(device, "POST", "/keys/upload", object{"one_time_keys": keys})
}
