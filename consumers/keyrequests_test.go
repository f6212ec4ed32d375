package consumers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
)

// checks is a host that is asked about devices. It answers each at once, unless its server is held.
type checks struct {
	*consumers.KeyRequests
	log  *test.Hook
	held map[string]chan struct{} // by server; closed to let it go
	fail error

	mu       sync.Mutex
	begun    []string       // as "user device"
	underWay map[string]int // by server
	most     map[string]int
	outcomes map[string]int
	changed  chan struct{} // closed at the next change
}

func startChecks(t *testing.T, held ...string) *checks {
	t.Helper()
	log, hook := test.NewNullLogger()
	c := &checks{
		log:      hook,
		held:     make(map[string]chan struct{}),
		underWay: make(map[string]int),
		most:     make(map[string]int),
		outcomes: make(map[string]int),
		changed:  make(chan struct{}),
	}
	for _, server := range held {
		c.held[server] = make(chan struct{})
	}
	isLocal := func(serverName string) bool { return serverName == "here" }
	c.KeyRequests = consumers.NewKeyRequests(isLocal, c.markStale, logrus.NewEntry(log))
	c.Observe = func(outcome string) { c.change(func() { c.outcomes[outcome]++ }) }
	c.Start(t.Context())
	t.Cleanup(c.Stop)
	return c
}

func (c *checks) markStale(ctx context.Context, userID, deviceID string) error {
	_, server, _ := strings.Cut(userID, ":")
	c.change(func() {
		c.begun = append(c.begun, userID+" "+deviceID)
		c.underWay[server]++
		c.most[server] = max(c.most[server], c.underWay[server])
	})
	defer c.change(func() { c.underWay[server]-- })
	if gate, ok := c.held[server]; ok {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.fail
}

func (c *checks) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait waits until the condition holds.
func (c *checks) wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		c.mu.Lock()
		met, changed := holds(), c.changed
		c.mu.Unlock()
		if met {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Fatalf("waited in vain for %s: begun are %d, the outcomes %v", what, len(c.begun), c.outcomes)
		}
	}
}

func (c *checks) ask(sender, deviceID string) {
	c.Check(sender, "m.room_key_request", json.RawMessage(fmt.Sprintf(`{"action":"request","requesting_device_id":%q}`, deviceID)))
}

func TestKeyRequestHasItsDeviceChecked(t *testing.T) {
	c := startChecks(t)
	c.ask("@carol:there", "D1")
	c.wait(t, "the check", func() bool { return c.outcomes["checked"] == 1 })
	if c.begun[0] != "@carol:there D1" {
		t.Errorf("checked was %v", c.begun)
	}
}

func TestWhatIsNoKeyRequestOfAnotherServersDevice(t *testing.T) {
	c := startChecks(t)
	const content = `{"requesting_device_id":"D"}`
	for _, m := range [][3]string{
		{"@carol:there", "m.room.encrypted", content},
		{"@carol:there", "M.room_key_request", content},
		{"@bob:here", "m.room_key_request", content},
		{"carol", "m.room_key_request", content},
		{"", "m.room_key_request", content},
		{"@carol:there", "m.room_key_request", `{}`},
		{"@carol:there", "m.room_key_request", `{"requesting_device_id":""}`},
		{"@carol:there", "m.room_key_request", `{"requesting_device_id":7}`},
		{"@carol:there", "m.room_key_request", `{"requesting_device_id":null}`},
		{"@carol:there", "m.room_key_request", `{"Requesting_Device_ID":"D"}`},
		{"@carol:there", "m.room_key_request", `{"requesting_device_id":"D\u0000"}`},
		{"@carol:there", "m.room_key_request", `{"requesting_device_id":"` + strings.Repeat("D", 2000) + `"}`},
		{"@carol:there", "m.room_key_request", `["requesting_device_id"]`},
		{"@carol:there", "m.room_key_request", ``},
	} {
		c.Check(m[0], m[1], json.RawMessage(m[2]))
	}
	c.ask("@carol:there", "last")
	c.wait(t, "the last check", func() bool { return c.outcomes["checked"] == 1 })
	if len(c.begun) != 1 || c.begun[0] != "@carol:there last" {
		t.Errorf("checked were %v", c.begun)
	}
}

// Neither many requests of one server that does not answer, nor several such servers, hold up the others.
func TestSlowServersHoldUpNobodyElse(t *testing.T) {
	slow := []string{"slow1", "slow2", "slow3"}
	c := startChecks(t, slow...)
	for _, server := range slow {
		for i := range 50 {
			c.ask("@carol:"+server, fmt.Sprint(i))
		}
	}
	c.wait(t, "the slow servers to be asked", func() bool { return len(c.begun) == len(slow) })
	for i := range 50 {
		c.ask("@dan:quick", fmt.Sprint(i))
	}
	c.wait(t, "the quick server's checks", func() bool { return c.outcomes["checked"] == 50 })
	for _, server := range slow {
		close(c.held[server])
	}
	c.wait(t, "the slow servers' checks", func() bool { return c.outcomes["checked"] == 200 })
	for server, most := range c.most {
		if most != 1 {
			t.Errorf("%d devices of %s were checked at once", most, server)
		}
	}
}

func TestServersTakeTurns(t *testing.T) {
	servers := make([]string, 8)
	for i := range servers {
		servers[i] = fmt.Sprint("slow", i)
	}
	c := startChecks(t, servers...)
	for _, server := range servers { // every worker has one
		c.ask("@carol:"+server, "D")
	}
	c.wait(t, "every worker to be busy", func() bool { return len(c.begun) == 8 })
	for i := range 5 {
		c.ask("@carol:first", fmt.Sprint(i))
	}
	c.ask("@carol:second", "0")
	close(c.held["slow0"])
	c.wait(t, "the others", func() bool { return c.outcomes["checked"] == 7 })
	if got := fmt.Sprint(c.begun[8:10]); got != "[@carol:first 0 @carol:second 0]" {
		t.Errorf("the order is %v", c.begun[8:])
	}
	if got := fmt.Sprint(c.begun[10:]); got != "[@carol:first 1 @carol:first 2 @carol:first 3 @carol:first 4]" {
		t.Errorf("the order is %v", c.begun[8:])
	}
}

func TestCheckThatWaitsIsNotRepeated(t *testing.T) {
	c := startChecks(t, "slow")
	for range 3 {
		c.ask("@carol:slow", "D1")
		c.ask("@carol:slow", "D2")
		c.ask("@dan:slow", "D1")
	}
	close(c.held["slow"])
	c.wait(t, "the checks", func() bool { return c.outcomes["checked"] == 3 })
	c.ask("@carol:slow", "last")
	c.wait(t, "the last check", func() bool { return c.outcomes["checked"] == 4 })
	if len(c.begun) != 4 {
		t.Errorf("checked were %v", c.begun)
	}
	// It is checked again once it is asked again after that.
	c.wait(t, "the end of the last check", func() bool { return c.underWay["slow"] == 0 })
	deadline := time.Now().Add(30 * time.Second)
	for again := false; !again; {
		if time.Now().After(deadline) {
			t.Fatal("it is never checked again")
		}
		c.ask("@carol:slow", "D1")
		c.mu.Lock()
		again = len(c.begun) > 4
		c.mu.Unlock()
	}
}

// What waits is bounded for each server and in all; what is beyond it is counted, and logged once.
func TestFloodIsDropped(t *testing.T) {
	var held []string
	for i := range 20 {
		held = append(held, fmt.Sprint("slow", i))
	}
	c := startChecks(t, held...)
	c.ask("@carol:slow0", "first")
	c.wait(t, "the first check", func() bool { return len(c.begun) == 1 })
	for i := range 150 {
		c.ask("@carol:slow0", fmt.Sprint(i))
	}
	c.wait(t, "the drops", func() bool { return c.outcomes["dropped"] == 50 })
	for _, server := range held[1:] {
		for i := range 90 {
			c.ask("@carol:"+server, fmt.Sprint(i))
		}
	}
	// 101 of the first server, and 899 of the 1,710 others.
	c.wait(t, "the drops", func() bool { return c.outcomes["dropped"] == 50+1710-899 })
	if lines := len(c.log.AllEntries()); lines != 1 {
		t.Errorf("%d lines were logged, want one", lines)
	}
	for _, server := range held {
		close(c.held[server])
	}
	c.wait(t, "what was taken", func() bool { return c.outcomes["checked"] == 1000 })
	c.ask("@carol:slow0", "after the flood")
	c.wait(t, "the check after the flood", func() bool { return c.outcomes["checked"] == 1001 })
}

func TestCheckThatFailsIsLoggedAndNotRepeated(t *testing.T) {
	c := startChecks(t)
	c.fail = errors.New("no route to host")
	c.ask("@carol:there", "D1")
	c.wait(t, "the failure", func() bool { return c.outcomes["failed"] == 1 })
	c.ask("@dan:there", "D2")
	c.wait(t, "the other failure", func() bool { return c.outcomes["failed"] == 2 && c.underWay["there"] == 0 })
	c.Stop()
	if len(c.begun) != 2 {
		t.Errorf("checked were %v", c.begun)
	}
	lines := c.log.AllEntries()
	if len(lines) != 2 {
		t.Fatalf("%d lines were logged, want two", len(lines))
	}
	if line, err := lines[0].String(); err != nil || !strings.Contains(line, "@carol:there") || !strings.Contains(line, "device_id=D1") || lines[0].Level != logrus.WarnLevel {
		t.Errorf("logged was %s, %v", line, err)
	}
}

func TestCheckEndsAtItsTimeout(t *testing.T) {
	log, _ := test.NewNullLogger()
	deadlines := make(chan time.Duration, 1)
	failed := make(chan string, 1)
	k := consumers.NewKeyRequests(func(string) bool { return false }, func(ctx context.Context, _, _ string) error {
		deadline, _ := ctx.Deadline()
		deadlines <- time.Until(deadline)
		<-ctx.Done()
		return ctx.Err()
	}, logrus.NewEntry(log))
	if k.Timeout != 15*time.Second {
		t.Errorf("a check may take %s", k.Timeout)
	}
	k.Timeout = time.Millisecond
	k.Observe = func(outcome string) { failed <- outcome }
	k.Start(t.Context())
	defer k.Stop()
	k.Check("@carol:there", "m.room_key_request", json.RawMessage(`{"requesting_device_id":"D"}`))
	if left := <-deadlines; left > time.Millisecond {
		t.Errorf("the check may take %s", left)
	}
	if outcome := <-failed; outcome != "failed" {
		t.Errorf("the check %s", outcome)
	}
}

func TestStopEndsWhatIsUnderWayAndWhatWaits(t *testing.T) {
	c := startChecks(t, "slow")
	for i := range 10 {
		c.ask("@carol:slow", fmt.Sprint(i))
	}
	c.wait(t, "a check", func() bool { return len(c.begun) == 1 })
	c.Stop()
	if len(c.begun) != 1 || c.underWay["slow"] != 0 {
		t.Errorf("begun are %v, under way %v", c.begun, c.underWay)
	}
	if lines := len(c.log.AllEntries()); lines != 0 {
		t.Errorf("%d lines were logged of checks that the stop ended", lines)
	}
	c.ask("@carol:slow", "late")
	c.ask("@carol:other", "late")
}

func TestCheckBeforeStart(t *testing.T) {
	log, _ := test.NewNullLogger()
	checked := make(chan string, 1)
	k := consumers.NewKeyRequests(func(string) bool { return false }, func(_ context.Context, userID, _ string) error {
		checked <- userID
		return nil
	}, logrus.NewEntry(log))
	k.Check("@carol:there", "m.room_key_request", json.RawMessage(`{"requesting_device_id":"D"}`))
	k.Start(t.Context())
	defer k.Stop()
	if userID := <-checked; userID != "@carol:there" {
		t.Errorf("checked was %s", userID)
	}
}
