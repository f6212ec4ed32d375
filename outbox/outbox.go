// Package outbox sends what waits for other servers. It has no connection of its own: it rides on the
// host's federation sender, which has one transaction under way for each destination and knows when to
// leave a destination alone. The host hands each transaction to Outbox.Send before it goes out, and a
// ring at the host's door makes it begin one.
package outbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/matrix-org/dendrite/todevicemodule/storage"
	"github.com/matrix-org/dendrite/todevicemodule/trace"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Host is the host's federation sender. The names in parentheses are those of the promises in package hosttest.
//
// The watch calls it from up to 128 goroutines at once, from one for a destination, and only for those for which something
// waits (nobody-is-rung-for-nothing). Its methods must not wait for Send.
type Host interface {
	// Ring makes the host begin a transaction to the destination, which holds a doorbell EDU: see IsDoorbell (a-ring-makes-a-transaction). The
	// host may be leaving the destination alone: then it is enough that the doorbell waits with what else the host has for it. It need not
	// outlive a restart. ctx ends after 10 seconds. An error says that nothing was rung for: it is tried again a second later. A ring that
	// leads to no Send is tried again after 5 seconds, and then ever more rarely, down to every 30.
	Ring(ctx context.Context, destination string) error
	// Backoff returns until when the host leaves a destination alone after failures; the zero time or a
	// past one says that it does not. givenUp says that it will not try again by itself (backoff-is-told). It must not block.
	Backoff(destination string) (until time.Time, givenUp bool)
	// Revive makes the host forget that it leaves a destination alone, and send what it has for it
	// (revived-destinations-are-sent-to). It is called once Reach has returned nil, and must not block.
	Revive(destination string)
	// Reach returns nil if the destination answers requests, and an error otherwise (destinations-are-reached). ctx ends after 10
	// seconds. At most 50 destinations are asked in a second, and one every 20 seconds, or every second right after a request of its own.
	Reach(ctx context.Context, destination string) error
}

// Outcome is what became of an EDU, for metrics.
type Outcome string

// What becomes of EDUs. A refused one is tried again later, one that was set aside is not.
const (
	Sent     Outcome = "sent"
	Refused  Outcome = "refused"
	SetAside Outcome = "set_aside"
)

// Options are what an Outbox works with. All are required, but for those that name a default.
type Options struct {
	Store storage.Outbox
	Host  Host
	// Aside is for Retry, RetryOne and Discard, which need it.
	Aside Aside
	Log   *logrus.Entry
	// Observe is told what became of EDUs; nil means nobody is.
	Observe func(outcome Outcome, edus int)
	// Trace is told the same of each EDU; nil means nobody is.
	Trace trace.Recorder
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Linger is for how long a call of Send waits for more EDUs once it has sent some. The default is 50 ms.
	Linger time.Duration
}

// Outbox keeps track of the destinations for which something waits. Start it once; its methods are
// safe for concurrent use.
type Outbox struct {
	Options

	mu           sync.Mutex
	destinations map[string]*destination // those with anything to remember

	wake     chan struct{} // holds a token while there may be something to do
	ringing  chan struct{} // holds a token for each destination that is being rung for
	asking   chan struct{} // holds a token for each destination that failed and is being looked after
	asks     *rate.Limiter
	running  context.Context
	cancel   context.CancelFunc
	stopping bool           // take no more EDUs along; guarded by mu
	sends    sync.WaitGroup // of Send; added to under mu, and not once stopping
	tasks    sync.WaitGroup
}

// destination is what is known of one server. Its fields are guarded by Outbox.mu, but for the last ones.
type destination struct {
	name string

	version uint64        // grows with each EDU added
	added   chan struct{} // holds a token once an EDU was added
	waiting bool          // EDUs may be in line
	retryAt time.Time     // when a refused EDU is due; zero if none is
	failure *Failure      // of the last transaction, or of looking after it

	sends     uint64    // grows with each call of Send, and when what is known of it is out of date
	readmits  uint64    // grows when an operator sets retryAt
	held      int       // it is not to be forgotten
	busy      int       // calls of Send
	tending   bool      // the watch looks after it
	belled    bool      // a ring is out, and no Send came since
	holdsBell bool      // the host still has a doorbell that failed to be sent
	failing   bool      // the last transaction failed, or a ring went unheard
	unheard   int       // rings in a row that went unheard
	lookedAt  time.Time // the last time that it was looked after
	lookAt    time.Time // not to be looked after before
	hinted    time.Time // a request of its came in; it may be back

	aside     sync.Mutex                  // held while a refused EDU is put aside, and while some are discarded
	discarded map[types.Position]struct{} // while refused EDUs are sent again; guarded by aside

	// Of whoever has sending.
	sending     sync.Mutex
	sentThrough types.Position // everything up to here is done with, whether its rows are deleted or not
	undeleted   bool           // up to sentThrough
	last        attempt        // the transaction that failed
}

// New returns an Outbox that is not started.
func New(options Options) *Outbox {
	if options.Observe == nil {
		options.Observe = func(Outcome, int) {}
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Linger == 0 {
		options.Linger = lingerFor
	}
	return &Outbox{
		Options:      options,
		destinations: make(map[string]*destination),
		wake:         make(chan struct{}, 1),
		ringing:      make(chan struct{}, rungForAtOnce),
		asking:       make(chan struct{}, askedAtOnce),
		asks:         rate.NewLimiter(askedASecond, askedAtOnce),
	}
}

// Start looks up for whom something waits and starts the watch.
func (o *Outbox) Start(ctx context.Context) error {
	kept, err := o.Store.Destinations(ctx)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, k := range kept {
		d := o.destination(k.Name)
		d.waiting, d.retryAt = k.Waiting, k.RetryAt
	}
	o.running, o.cancel = context.WithCancel(context.WithoutCancel(ctx))
	o.tasks.Go(o.watch)
	o.wakeWatch()
	return nil
}

// Stop ends the watch and waits for the transactions under way, until ctx ends: those are then given up,
// and sent again after the next start.
func (o *Outbox) Stop(ctx context.Context) error {
	o.mu.Lock()
	o.stopping = true
	o.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		o.sends.Wait()
		close(idle)
	}()
	var err error
	select {
	case <-idle:
	case <-ctx.Done():
		err = errors.New("transactions to other servers were still under way")
	}
	o.cancel()
	o.tasks.Wait()
	<-idle
	return err
}

// Added says that the EDUs were stored. It returns at once.
func (o *Outbox) Added(edus []storage.EDU) {
	o.mu.Lock()
	for _, edu := range edus {
		d := o.destination(edu.Destination)
		d.version++
		d.waiting = true
		select {
		case d.added <- struct{}{}:
		default:
		}
	}
	o.mu.Unlock()
	o.wakeWatch()
}

// Seen says that a server sent us a request, so it may be back. Whoever says so need not be
// trusted: the server is asked. It returns at once.
func (o *Outbox) Seen(serverName string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d, ok := o.destinations[serverName]
	if !ok || !d.failing || d.belled {
		return
	}
	d.hinted = o.Now()
	if early := d.lookedAt.Add(hintPause); early.Before(d.lookAt) {
		d.lookAt = early
	}
	o.wakeWatch()
}

// Destinations returns for how many servers something waits.
func (o *Outbox) Destinations() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range o.destinations {
		if d.waiting || !d.retryAt.IsZero() {
			n++
		}
	}
	return n
}

// destination returns what is known of a server. The caller has mu.
func (o *Outbox) destination(name string) *destination {
	d, ok := o.destinations[name]
	if !ok {
		d = &destination{name: name, added: make(chan struct{}, 1)}
		o.destinations[name] = d
	}
	return d
}

// forget drops a destination of which there is nothing to remember. The caller has mu.
func (o *Outbox) forget(d *destination) {
	if d.busy == 0 && d.held == 0 && !d.tending && !d.waiting && d.retryAt.IsZero() && !d.failing && !d.undeleted {
		delete(o.destinations, d.name)
	}
}

func (o *Outbox) wakeWatch() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}
