package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// How the devices of a crowd wait.
const (
	impatience   = 300 * time.Millisecond
	lastSync     = time.Second // of the /sync after which nothing can come any more
	longestSleep = 2 * time.Second
)

// crowd is a number of users with several devices each, that send to one another and to their own devices, and
// receive in the different ways of clients.
type crowd struct {
	journal *Journal
	people  []*person
	servers []*Server
	keepers map[*Server]*keeper
	// onItsWay is how long a message may take after its 200.
	onItsWay time.Duration
	// passedOn waits until every message is where its receivers get it, once all are sent: those of which it is not known whether they
	// must arrive, too. Nil does not wait.
	passedOn func()
	seed     uint64
	// rate is how many requests a second all senders together have on their schedule. 0 has each of them pause between two.
	rate int

	sessions sessions
	// churning is held by whoever must not have devices deleted or signed in meanwhile, and for reading while one is.
	churning sync.RWMutex

	paces    []*pace
	loaded   time.Duration // from the first message to the last one
	messages atomic.Int64  // requests answered 200
	slowest  slowest
}

// slowest is the request that waited longest for its answer, beyond what it asked for.
type slowest struct {
	sync.Mutex
	took time.Duration
	what string
}

func (s *slowest) note(began time.Time, asked time.Duration, a Answer, what string) {
	s.Lock()
	defer s.Unlock()
	if took := time.Since(began) - asked; took > s.took {
		s.took, s.what = took, fmt.Sprintf("%s at %s: %.100s", what, began.Format("15:04:05.000"), a)
	}
}

func (s *slowest) String() string {
	s.Lock()
	defer s.Unlock()
	return fmt.Sprintf("%s, %s", s.took.Round(time.Millisecond), s.what)
}

// person is a user with devices.
type person struct{ devices []*Client }

func (p *person) id() id.UserID { return p.devices[0].UserID }

// deviceName is the name of a device in the journal.
func deviceName(c *Client) string { return c.UserID.String() + "|" + c.DeviceID.String() }

// settle registers the people of a server, each with as many devices.
func (c *crowd) settle(t testing.TB, k *keeper, people, devices int) {
	t.Helper()
	c.servers, c.keepers[k.s] = append(c.servers, k.s), k
	for range people {
		first := Register(t, k.s, "torture")
		p := &person{devices: []*Client{first}}
		for i := 1; i < devices; i++ {
			p.devices = append(p.devices, first.Login(t, k.s, id.DeviceID(fmt.Sprintf("DEVICE%d", i))))
		}
		c.people = append(c.people, p)
	}
}

// devices are all of them.
func (c *crowd) devices() (all []*Client) {
	for _, p := range c.people {
		all = append(all, p.devices...)
	}
	return all
}

// run sends and receives until disturb returns, and then until everything has arrived.
func (c *crowd) run(ctx context.Context, t testing.TB, disturb func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	quit, sent := make(chan struct{}), make(chan struct{})
	var senders, receivers sync.WaitGroup
	defer func() { // a test that failed within disturb does not return
		cancel()
		senders.Wait()
		receivers.Wait()
	}()
	c.sessions.of = map[string]*session{}
	c.setPaces()
	began, next := time.Now(), 0
	for i, p := range c.people {
		if comesAndGoes(i) {
			senders.Go(func() { c.churn(ctx, t, p, rand.New(rand.NewPCG(c.seed, 2<<32|uint64(i))), quit) })
		}
		for d, device := range p.devices {
			chance := rand.New(rand.NewPCG(c.seed, uint64(i)<<8|uint64(d)))
			receivers.Go(func() { c.receive(ctx, t, device, rand.New(rand.NewPCG(c.seed, 1<<32|uint64(i)<<8|uint64(d))), sent) })
			if sends(i, d) {
				pace := c.paces[next]
				next++
				senders.Go(func() { c.send(ctx, t, p, device, pace, chance, quit) })
			}
		}
	}
	disturb()
	ended := time.Now()
	close(quit)
	senders.Wait()
	last := time.Now()
	c.loaded = last.Sub(began)
	if c.passedOn != nil && !t.Failed() {
		c.passedOn()
	}
	close(sent)
	receivers.Wait()
	t.Logf("the last message was sent %s after the last fault, and the last /sync came %s later",
		last.Sub(ended).Round(time.Millisecond), time.Since(last).Round(time.Millisecond))
}

// sends tells whether a device sends: of every second user all do.
func sends(person, device int) bool { return device == 0 || person%2 == 0 }

// setPaces gives each sender its part of the rate.
func (c *crowd) setPaces() {
	senders := 0
	for i, p := range c.people {
		for d := range p.devices {
			if sends(i, d) {
				senders++
			}
		}
	}
	mean := sendPace
	if c.rate > 0 {
		mean = time.Duration(senders) * time.Second / time.Duration(c.rate)
	}
	for range senders {
		c.paces = append(c.paces, newPace(mean, c.rate > 0))
	}
}

// behind returns how long the crowd would take at its rate for what it should have sent already.
func (c *crowd) behind() time.Duration {
	if c.rate == 0 {
		return 0
	}
	requests, now := 0., time.Now()
	for _, p := range c.paces {
		requests += p.behind(now)
	}
	return time.Duration(requests / float64(c.rate) * float64(time.Second))
}

// send sends messages one after the other, in the different ways in which clients do not get their answer at once.
func (c *crowd) send(ctx context.Context, t testing.TB, p *person, device *Client, pace *pace, chance *rand.Rand, quit <-chan struct{}) {
	for seq := 0; ; seq++ {
		select {
		case <-quit:
			return
		case <-ctx.Done():
			return
		case <-time.After(pace.pause(chance)):
		}
		session := c.session(device)
		m := journalMessage{Sender: device.UserID.String(), Device: device.DeviceID.String(), Seq: seq}
		messages, to := c.choose(p, m, chance)
		names := make([]string, len(to))
		for i, r := range to {
			names[i] = deviceName(r)
		}
		c.journal.Sent(m, names)
		r := sending{crowd: c, session: session, txn: unique("txn"), body: messages.Body()}
		switch manner := chance.IntN(20); {
		case manner == 0: // the user closes the application
			r.once(ctx, t, impatience)
		case manner == 1: // two connections carry the same request
			var twins sync.WaitGroup
			for range 2 {
				twins.Go(func() { r.untilAnswered(ctx, t, deadline) })
			}
			twins.Wait()
		case manner < 5:
			r.untilAnswered(ctx, t, impatience)
		default:
			r.untilAnswered(ctx, t, deadline)
		}
		if ctx.Err() != nil || t.Failed() {
			return
		}
		if !r.accepted.Load() {
			c.journal.GivenUp(m, names)
			continue
		}
		c.journal.Accepted(m, names, int(r.attempts.Load()))
		c.messages.Add(1)
		if chance.IntN(20) == 0 { // the answer was lost on its last metres
			r.untilAnswered(ctx, t, deadline)
		}
	}
}

// choose draws whom a message is for, and returns the devices that it must reach.
func (c *crowd) choose(p *person, m journalMessage, chance *rand.Rand) (Messages, []*Client) {
	switch kind := chance.IntN(20); {
	case kind == 0: // everyone
		messages := Messages{}
		for _, other := range c.people {
			messages[other.id()] = map[id.DeviceID]any{"*": m}
		}
		return messages, c.devices()
	case kind < 4: // all devices of somebody
		other := c.people[chance.IntN(len(c.people))]
		return Messages{other.id(): {"*": m}}, other.devices
	case kind < 6: // the own ones
		return To(m, p.devices...), p.devices
	case kind < 10: // some
		all := c.devices()
		chance.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:2+chance.IntN(3)]
		return To(m, all...), all
	default:
		all := c.devices()
		to := all[chance.IntN(len(all))]
		return To(m, to), []*Client{to}
	}
}

// sending is one request of a client, whatever many times it is sent.
type sending struct {
	*crowd
	session  *session
	txn      string
	body     []byte
	attempts atomic.Int64
	accepted atomic.Bool // whether any answer was 200
}

// once sends it and tells whether that was the last time: the answer was 200, or the device is deleted. No answer and 5xx ask
// for a repetition; anything else fails the test.
func (r *sending) once(ctx context.Context, t testing.TB, patience time.Duration) bool {
	r.attempts.Add(1)
	all := ctx
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	a := r.session.Put(ctx, "m.torture", r.txn, r.body)
	r.slowest.note(began, 0, a, "a message")
	switch {
	case a.Status == http.StatusOK:
		r.accepted.Store(true)
		return true
	case a.Err != nil || a.Status >= 500:
		return false
	case !r.ended(all, r.session, a):
		t.Errorf("%s sends: %v", deviceName(r.session.Client), a)
	}
	return true
}

func (r *sending) untilAnswered(ctx context.Context, t testing.TB, patience time.Duration) {
	for !r.once(ctx, t, patience) && ctx.Err() == nil && !t.Failed() {
		pause(ctx, r.session.server)
		patience = min(2*patience, deadline)
	}
}

// receive follows next_batch, in the different ways in which clients come back to the same token.
func (c *crowd) receive(ctx context.Context, t testing.TB, device *Client, chance *rand.Rand, sent <-chan struct{}) {
	session, k := c.session(device), c.keepers[device.server]
	view := newDeviceView(c.journal, session)
	hurried := chance.IntN(3) == 0 // syncs without a timeout
	var patience time.Time
	for ctx.Err() == nil && !t.Failed() {
		if now := c.session(device); now != session {
			session, view = now, newDeviceView(c.journal, now)
		}
		done := false
		select {
		case <-sent:
			if done = true; patience.IsZero() {
				patience = time.Now().Add(c.onItsWay)
			}
		default:
		}
		since, timeout, keep := view.since, lastSync, true
		if hurried && !done {
			timeout = 0
		}
		switch manner := chance.IntN(40); {
		case done:
		case manner < 4: // the answer is lost
			keep = false
		case manner < 6: // the client has forgotten where it was
			since, timeout, keep = view.previous, 0, false
		case manner == 6: // it was installed anew, and throws away what it gets
			since, timeout, keep = "", 0, false
		case manner == 7:
			rest(ctx, sent, time.Duration(chance.Int64N(int64(longestSleep))))
		}
		before := k.runs.Load()
		view.asks(since)
		began := time.Now()
		res, a := session.TrySync(ctx, Sync{Since: since, Timeout: timeout})
		c.slowest.note(began, timeout, a, "/sync of "+view.name)
		if res == nil {
			if c.ended(ctx, session, a) {
				continue
			}
			if a.Err == nil && a.Status < 500 {
				t.Errorf("%s syncs: %v", view.name, a)
			}
			pause(ctx, device.server)
			continue
		}
		if err := view.answered(since, res, before, k.runs.Load(), keep); err != nil {
			t.Error(err)
			return
		}
		if done && len(res.Events()) == 0 && res.Elapsed >= lastSync &&
			(time.Now().After(patience) || c.journal.Outstanding(view.name) == 0) {
			return
		}
		if hurried && !done {
			rest(ctx, sent, time.Duration(chance.Int64N(int64(100*time.Millisecond))))
		}
	}
}

// rest does nothing for a while, or until everything is sent.
func rest(ctx context.Context, sent <-chan struct{}, d time.Duration) {
	select {
	case <-time.After(d):
	case <-sent:
	case <-ctx.Done():
	}
}
