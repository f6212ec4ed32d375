package e2e

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Wire stands between a server and what it talks to over TCP, and does to the connections what a bad network does.
// It looks into what passes only to find where a transaction of PostgreSQL ends. Its methods are safe for
// concurrent use.
type Wire struct {
	// Address is where it listens.
	Address string
	// LostCommits is how many commits were cut off before they reached PostgreSQL, and UnansweredCommits how many
	// afterwards.
	LostCommits, UnansweredCommits atomic.Int64
	// BrokenAnswers is how many answers were cut off in their midst.
	BrokenAnswers atomic.Int64

	mu          sync.Mutex
	target      string
	connections map[*wired]bool
	stranded    []net.Conn
	weather     wireWeather
}

// wireWeather is what happens to all connections for a while. The zero value is fair.
type wireWeather struct {
	delay   func() time.Duration // of each piece of data
	closed  bool                 // to new connections
	frozen  chan struct{}        // nothing passes until it is closed
	commits func() commitFate
	answers func() bool // whether the next one breaks
}

type commitFate int

const (
	commitPasses     commitFate = iota
	commitLost                  // the connection ends before it is sent
	commitUnanswered            // the connection ends after it was carried out
)

// wired is one connection.
type wired struct {
	client, target net.Conn
	doomed         atomic.Bool // ends with the next data from the target
	stranded       atomic.Bool // ends for the client alone
}

func (c *wired) close() {
	_ = c.client.Close()
	if !c.stranded.Load() {
		_ = c.target.Close()
	}
}

// NewWire listens on the address for connections to the target, until the test ends.
func NewWire(t testing.TB, address, target string) *Wire {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{Address: address, target: target, connections: map[*wired]bool{}}
	t.Cleanup(func() {
		_ = listener.Close()
		w.Fair()
		w.Cut()
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go w.join(client)
		}
	}()
	return w
}

// Fair ends everything that the methods below began.
func (w *Wire) Fair() {
	w.set(func(weather *wireWeather) {
		if weather.frozen != nil {
			close(weather.frozen)
		}
		*weather = wireWeather{}
		for _, target := range w.stranded {
			_ = target.Close()
		}
		w.stranded = nil
	})
}

// Slow holds each piece of data up for as long as delay says.
func (w *Wire) Slow(delay func() time.Duration) {
	w.set(func(weather *wireWeather) { weather.delay = delay })
}

// Freeze lets nothing pass and ends no connection, as a network that was divided.
func (w *Wire) Freeze() {
	w.set(func(weather *wireWeather) { weather.frozen = make(chan struct{}) })
}

// Close ends all connections and lets none be made.
func (w *Wire) Close() {
	w.set(func(weather *wireWeather) { weather.closed = true })
	w.Cut()
}

// Commits asks what is to become of each commit of PostgreSQL.
func (w *Wire) Commits(fate func() commitFate) {
	w.set(func(weather *wireWeather) { weather.commits = fate })
}

// Answers asks for each piece of data from the target whether the connection is to end in its midst.
func (w *Wire) Answers(breaks func() bool) {
	w.set(func(weather *wireWeather) { weather.answers = breaks })
}

// Aim has new connections go to another target.
func (w *Wire) Aim(target string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = target
}

// Cut ends all connections.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.connections {
		c.close()
	}
}

// Strand ends all connections for the clients alone. The target notices nothing until Fair.
func (w *Wire) Strand() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.connections {
		c.stranded.Store(true)
		w.stranded = append(w.stranded, c.target)
		c.close()
	}
}

func (w *Wire) set(change func(*wireWeather)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.weather)
}

func (w *Wire) now() wireWeather {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.weather
}

func (w *Wire) join(client net.Conn) {
	weather := w.now()
	if weather.frozen != nil {
		<-weather.frozen // a target that heard nothing but the connection would wait for more
	}
	if weather.closed {
		_ = client.Close()
		return
	}
	w.mu.Lock()
	address := w.target
	w.mu.Unlock()
	target, err := net.Dial("tcp", address)
	if err != nil {
		_ = client.Close()
		return
	}
	c := &wired{client: client, target: target}
	w.mu.Lock()
	if w.weather.closed {
		c.close()
	}
	w.connections[c] = true
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.carry(c, target, client, w.towards) })
	both.Go(func() { w.carry(c, client, target, w.back) })
	both.Wait()
	w.mu.Lock()
	delete(w.connections, c)
	w.mu.Unlock()
}

// carry copies one direction. What passes judgement returns how much of the data goes on, and whether the connection
// does.
func (w *Wire) carry(c *wired, to, from net.Conn, judge func(*wired, wireWeather, []byte) (pass int, ends bool)) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			weather := w.now()
			if weather.frozen != nil {
				<-weather.frozen
				weather = w.now()
			}
			if weather.delay != nil {
				time.Sleep(weather.delay())
			}
			pass, ends := judge(c, weather, buffer[:n])
			if _, err := to.Write(buffer[:pass]); err != nil || ends {
				c.close()
				return
			}
		}
		if errors.Is(err, io.EOF) && to == c.target {
			_ = c.target.(*net.TCPConn).CloseWrite() // the client has said all, and may wait for the rest
			return
		}
		if err != nil {
			c.close()
			return
		}
	}
}

// commitMessage is the Query message by which lib/pq ends a transaction.
var commitMessage = []byte("Q\x00\x00\x00\x0bCOMMIT\x00")

func (w *Wire) towards(c *wired, weather wireWeather, data []byte) (int, bool) {
	if weather.commits == nil || !bytes.Contains(data, commitMessage) {
		return len(data), false
	}
	switch weather.commits() {
	case commitLost:
		w.LostCommits.Add(1)
		return 0, true
	case commitUnanswered:
		c.doomed.Store(true)
	}
	return len(data), false
}

func (w *Wire) back(c *wired, weather wireWeather, data []byte) (int, bool) {
	switch {
	case c.doomed.Load():
		w.UnansweredCommits.Add(1)
		return 0, true
	case weather.answers != nil && weather.answers():
		w.BrokenAnswers.Add(1)
		return len(data) / 2, true
	}
	return len(data), false
}

// lockedRand is a source of chance that many may use at once.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newLockedRand(seed uint64) *lockedRand {
	return &lockedRand{r: rand.New(rand.NewPCG(seed, 0))}
}

// chance is true with the probability given.
func (l *lockedRand) chance(p float64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Float64() < p
}

// upTo returns a duration below the one given.
func (l *lockedRand) upTo(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.r.Int64N(int64(d)))
}
