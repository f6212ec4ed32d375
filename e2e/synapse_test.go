package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// Messages cross in both directions at once, more of them than one /sync brings.
func TestSynapseBothWays(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		out, in := NewCrossing(t, here, there), NewCrossing(t, there, here)
		runCrossings(t, func() {
			out.Progress(t, 250)
			in.Progress(t, 250)
		}, out, in)
	})
}

// Meanwhile Synapse is stopped by its operator, then killed, and then this server is killed.
func TestSynapseRestartedUnderLoad(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		out, in := NewCrossing(t, here, there), NewCrossing(t, there, here)
		progress := func() {
			t.Helper()
			out.Progress(t, 100)
			in.Progress(t, 100)
		}
		runCrossings(t, func() {
			progress()
			if err := there.Stop(); err != nil {
				t.Error(err)
			}
			there.MustStart(t)
			progress()
			there.Restart(t)
			progress()
			here.Restart(t)
			progress()
		}, out, in)
	})
}

// What was sent while Synapse was down arrives within a minute of its return, in order.
func TestSynapseWasDown(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		out := NewCrossing(t, here, there)
		runCrossings(t, func() {
			out.Progress(t, 1)
			if err := there.Stop(); err != nil {
				t.Error(err)
			}
			before, _ := out.Journal.Counts()
			eventually(t, "50 messages are sent", func() (bool, any) {
				accepted, _ := out.Journal.Counts()
				return accepted-before >= 50, accepted
			})
			there.MustStart(t)
		}, out)
	})
}

// A transaction is signed as a whole: a content that Synapse writes in another way than this server did, when it
// checks the signature, would hold up everything for it. So each content arrives, or is refused at once.
func TestContentsForSynapse(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		exchangeContents(t, here, there, slices.Concat(minusZeroContents, oddContents))
	})
}

// Whatever content Synapse takes from its client arrives here.
func TestContentsFromSynapse(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		exchangeContents(t, there, here, oddContents)
	})
}

var (
	plainContents = []string{
		`{}`,
		`{"text":"héllo 😀 ä\u2028\u2029 \"\\\/\b\f\n\r\t\u001f\u007f","ключ":"值","":"empty key"}`,
		`{"html":"<script>&amp;'</script>","\u2028<&>":{"\ud83d\ude00":1,"\uffff":2,"a":[[],{},null,true]}}`,
		`{"a":9007199254740993,"b":-9223372036854775809,"c":123456789012345678901234567890,"d":-0}`,
		nested(100),
	}
	// Synapse writes each of these with a "-0", of which gomatrixserverlib takes away the "-".
	minusZeroContents = []string{
		`{"a":-0.0}`, `{"a":-0.5}`, `{"a":1.50E-7}`, `{"a":0.00001}`, `{"a":-1e-7}`, `{"a":[-0,-0.0,-0.25,"-0.5"]}`,
	}
	// Either server may refuse these.
	oddContents = []string{
		`{"nul":"a\u0000b","\u0000":"\u0000"}`,
		`{"lone":"\ud800","low":"\udc00x","\ud800":"key"}`,
		`{"a":1,"a":2,"b":{"c":1,"c":{"d":1,"d":2}}}`,
		`{"a":1.0,"b":1e3,"c":1E+3,"d":100e-2,"e":0.0}`,
		`{"a":1.5,"b":0.1000,"c":123.456,"d":-1.5,"e":0.0001,"f":1e-10}`,
		`{"a":1e15,"b":1e16,"c":1e22,"d":1.5e300,"e":5e-324,"f":1.7976931348623157e308}`,
		`{"a":9007199254740993.0,"b":12345678901234567890.5,"c":0.1000000000000000055511151231257827}`,
		`{"a":1e400}`, `{"a":-1e400}`, `{"a":1e-400}`, `{"a":0e999999999}`,
		`{"a":` + strings.Repeat("9", 4300) + `}`, `{"a":-` + strings.Repeat("9", 4301) + `}`,
	}
)

// exchangeContents sends one content after the other, each followed by a plain one that must arrive as well.
// Beside them go names that no server expects.
func exchangeContents(t *testing.T, from, to *Server, odd []string) {
	t.Helper()
	alice, bob := Register(t, from, "alice"), Register(t, to, "bob")
	since := ""
	for i, content := range slices.Concat(plainContents, odd) {
		name := `<é>\u2028😀`
		if from.Backend == synapse {
			name += `\u0001` // which this server refuses to send
		}
		body := fmt.Sprintf(`{"messages":{%q:{%q:%s,"%s":{}},"@<é>😀 :%s":{"*":{}}}}`, bob.UserID, bob.DeviceID, content, name, to.name)
		a := alice.Put(t.Context(), "m.<é>\u2028/😀", unique("txn"), []byte(body))
		want := 1
		if a.Status != http.StatusOK {
			want = 0
			t.Logf("%.80s: %.200v", content, a)
			if i < len(plainContents) || from.Backend != synapse && a.Status != http.StatusBadRequest {
				t.Errorf("%.80s: got %v", content, a)
			}
		}
		alice.Send(t, "m.plain", To(object{"n": i}, bob))
		var events []Event
		events, since = bob.Receive(t, since, want+1)
		if want == 1 {
			wantSameMeaning(t, events[0].Content, content)
		}
		wantNumbers(t, numbers(t, events[want:]), i, i+1)
	}
}

// One request for more devices than fit an EDU reaches each of them, and the next one comes after it. Synapse passes
// over devices that it does not know.
func TestManyDevicesOfSynapse(t *testing.T) {
	const known, all = 30, 1000
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		alice, bob := Register(t, here, "alice"), Register(t, there, "bob")
		devices := []*Client{bob}
		for n := 1; n < known; n++ {
			devices = append(devices, bob.Login(t, there, id.DeviceID(fmt.Sprintf("DEVICE%d", n))))
		}
		messages := Messages{bob.UserID: {}}
		for n := range all {
			device, size := id.DeviceID(fmt.Sprintf("DEVICE%d", n)), 500
			if n < known {
				device, size = devices[n].DeviceID, 2<<10
			}
			messages[bob.UserID][device] = object{"n": n, "filling": strings.Repeat("x", size)}
		}
		alice.Send(t, "m.many", messages)
		alice.Send(t, "m.many", Messages{bob.UserID: {"*": object{"n": all}}})
		for n, d := range devices {
			events, _ := d.Receive(t, "", 2)
			if got := numbers(t, events); got[0] != n || got[1] != all {
				t.Errorf("device %d: want the messages %d and %d, got %v", n, n, all, got)
			}
		}
	})
}

// Synapse takes "*" for a device's name where another device stands beside it.
func TestWildcardBesideDeviceOfSynapse(t *testing.T) {
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		alice, bob := Register(t, here, "alice"), Register(t, there, "bob")
		second := bob.Login(t, there, "SECOND")
		alice.Send(t, "m.test", Messages{bob.UserID: {"*": object{"n": 0}, second.DeviceID: object{"n": 1}}})
		alice.Send(t, "m.test", To(object{"n": 2}, bob, second))
		events, _ := bob.Receive(t, "", 2)
		if got := numbers(t, events); got[0] != 0 || got[1] != 2 {
			t.Errorf("want the messages 0 and 2, got %v", got)
		}
	})
}

// Synapse fails over one of the messages, whatever comes with it, and answers 500 for its whole transaction. Those
// behind it arrive all the same.
func TestMessageThatSynapseFailsOver(t *testing.T) {
	t.Parallel() // the only one of those with these servers that is
	// Up to six attempts, the host's pauses between which grow to half a minute, before it is told apart
	// from a Synapse in trouble.
	const isolation = 2 * time.Minute
	onBoth(t, func(t *testing.T, b Backend) {
		here, there := SharedWithSynapse(t, b)
		alice, bob := Register(t, here, "alice"), Register(t, there, "bob")
		logged := there.logSize()
		alice.Send(t, "m.room_key_request", To(object{"requesting_device_id": object{}}, bob))
		eventually(t, "Synapse fails", func() (bool, any) {
			log := there.logTail(logged)
			return strings.Contains(log, "unhashable"), log
		})
		journal := NewJournal()
		journal.Send(t.Context(), t, alice, 0, 5, bob)
		journal.Collect(t, bob, "", isolation)
		journal.WantGood(t, "behind a message that Synapse fails over")
	})
}
