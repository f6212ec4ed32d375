package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// churnPace is how long somebody whose devices come and go waits between two times, in the mean.
const churnPace = 400 * time.Millisecond

// comesAndGoes tells whether a person signs devices out and in: every third one does.
func comesAndGoes(person int) bool { return person%3 == 2 }

// session is a device from one sign-in to the next.
type session struct {
	*Client
	life int
	over chan struct{} // closed when the next one has begun
}

// sessions are the present ones of the devices of a crowd.
type sessions struct {
	mu sync.Mutex
	of map[string]*session
}

// session returns that of a device, whatever session the client is of.
func (c *crowd) session(device *Client) *session {
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	name := deviceName(device)
	if c.sessions.of[name] == nil {
		c.sessions.of[name] = &session{Client: device, over: make(chan struct{})}
	}
	return c.sessions.of[name]
}

// ended tells whether the answer is the one that a device gets whose deletion has begun, and waits until it is signed in again.
func (c *crowd) ended(ctx context.Context, s *session, a Answer) bool {
	if a.ErrCode != mautrix.MUnknownToken.ErrCode || c.journal.Alive(deviceName(s.Client), s.life) {
		return false
	}
	select {
	case <-s.over:
	case <-ctx.Done():
	}
	return true
}

// churn signs devices of a person out and in again under the same IDs, in the ways in which devices are deleted.
func (c *crowd) churn(ctx context.Context, t testing.TB, p *person, chance *rand.Rand, quit <-chan struct{}) {
	for ctx.Err() == nil && !t.Failed() {
		select {
		case <-quit:
			return
		case <-time.After(time.Duration(chance.Int64N(int64(2 * churnPace)))):
		}
		c.churning.RLock()
		c.churnOnce(ctx, t, p, chance)
		c.churning.RUnlock()
	}
}

func (c *crowd) churnOnce(ctx context.Context, t testing.TB, p *person, chance *rand.Rand) {
	devices := make([]*session, len(p.devices))
	for i, j := range chance.Perm(len(p.devices)) {
		devices[i] = c.session(p.devices[j])
	}
	actor, gone := devices[0], devices[:1]
	path, body := []any{"v3", "logout"}, object{}
	switch manner := chance.IntN(12); {
	case manner == 0:
		path, gone = append(path, "all"), devices
	case manner < 6 && len(devices) > 1:
		gone = devices[1 : 2+chance.IntN(len(devices)-1)]
		ids := make([]id.DeviceID, len(gone))
		for i, s := range gone {
			ids[i] = s.DeviceID
		}
		path = []any{"v3", "delete_devices"}
		body = object{"devices": ids, "auth": object{
			"type": mautrix.AuthTypePassword, "password": password,
			"identifier": object{"type": mautrix.IdentifierTypeUser, "user": p.id()},
		}}
	}
	for _, s := range gone {
		c.journal.Deleting(deviceName(s.Client))
	}
	c.insist(ctx, t, fmt.Sprintf("%s asks for %v", deviceName(actor.Client), path[1:]), actor.Client, path, body, gone[0] == actor)
	for _, s := range gone {
		c.signIn(ctx, t, s)
	}
}

// insist sends a request until it is known to be done, and returns the answer. Where it ends the session that it is sent in, a token that
// is not known any more says so, too, but for the first answer.
func (c *crowd) insist(ctx context.Context, t testing.TB, what string, as *Client, path []any, body object, ends bool) Answer {
	for attempts := 1; ctx.Err() == nil; attempts++ {
		began := time.Now()
		patience, cancel := context.WithTimeout(ctx, deadline)
		a := as.do(patience, http.MethodPost, as.BuildClientURL(path...), mustJSON(body))
		cancel()
		c.slowest.note(began, 0, a, what)
		switch {
		case a.Status == http.StatusOK, ends && attempts > 1 && a.ErrCode == mautrix.MUnknownToken.ErrCode:
			return a
		case a.Err == nil && a.Status < 500 && !passwordUnread(a):
			t.Errorf("%s: %v", what, a)
			return a
		}
		pause(ctx, as.server)
	}
	return Answer{}
}

// passwordUnread tells whether the host could not read an account, which it answers as it does a wrong password
// (clientapi/auth/user_interactive.go, Verify).
func passwordUnread(a Answer) bool {
	return a.Status == http.StatusUnauthorized && a.ErrCode == mautrix.MUnknown.ErrCode
}

// signIn begins the next session of a device that was deleted.
func (c *crowd) signIn(ctx context.Context, t testing.TB, s *session) {
	defer close(s.over) // whoever waits sees whether the test has failed
	n := newClient(t, s.server)
	a := c.insist(ctx, t, deviceName(s.Client)+" signs in", n, []any{"v3", "login"}, object{
		"type": mautrix.AuthTypePassword, "password": password, "device_id": s.DeviceID,
		"identifier": object{"type": mautrix.IdentifierTypeUser, "user": s.UserID},
	}, false)
	if a.Status != http.StatusOK {
		return
	}
	var res mautrix.RespLogin
	if err := json.Unmarshal(a.Body, &res); err != nil {
		t.Errorf("%s signs in: %v: %v", deviceName(s.Client), err, a)
		return
	}
	n.as(res.UserID, res.DeviceID, res.AccessToken)
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	name := deviceName(n)
	c.sessions.of[name] = &session{Client: n, life: c.journal.SignedIn(name), over: make(chan struct{})}
}
