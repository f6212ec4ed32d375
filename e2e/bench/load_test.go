package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeServer answers PUT and /sync of devices whose token is their ID. What is done to a message on its way to a queue is up to the
// test: it is given the number of the message.
type fakeServer struct {
	*httptest.Server
	deliver func(n int, message json.RawMessage) []json.RawMessage

	mu      sync.Mutex
	puts    int
	queues  map[string][]json.RawMessage // by device ID
	arrived chan struct{}                // closed, and made anew, with each message
}

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{
		deliver: func(_ int, m json.RawMessage) []json.RawMessage { return []json.RawMessage{m} },
		queues:  map[string][]json.RawMessage{}, arrived: make(chan struct{}),
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeServer) devices(t *testing.T, prefix string, n int) []*device {
	transport := newTransport()
	t.Cleanup(transport.CloseIdleConnections)
	var all []*device
	for i := range n {
		id := prefix + strconv.Itoa(i)
		all = append(all, &device{
			server: newHomeserver(f.URL, transport), user: "@" + id + ":x", id: id, header: http.Header{"Authorization": {id}},
		})
	}
	return all
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		f.put(w, r)
		return
	}
	since, _ := strconv.Atoi(r.URL.Query().Get("since"))
	timeout, _ := strconv.Atoi(r.URL.Query().Get("timeout"))
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(timeout)*time.Millisecond)
	defer cancel()
	for {
		f.mu.Lock()
		queue, arrived := f.queues[r.Header.Get("Authorization")][since:], f.arrived
		if len(queue) > 0 || ctx.Err() != nil {
			f.mu.Unlock()
			fmt.Fprintf(w, `{"next_batch":"%d","to_device":{"events":%s}}`, since+len(queue), mustJSON(append([]json.RawMessage{}, queue...)))
			return
		}
		f.mu.Unlock()
		select {
		case <-arrived:
		case <-ctx.Done():
		}
	}
}

func (f *fakeServer) put(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Messages map[string]map[string]json.RawMessage
	}
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, devices := range body.Messages {
		for id, content := range devices {
			event := json.RawMessage(`{"type":"m.bench","content":` + string(content) + `}`)
			f.queues[id] = append(f.queues[id], f.deliver(f.puts, event)...)
			f.puts++
		}
	}
	close(f.arrived)
	f.arrived = make(chan struct{})
	fmt.Fprintln(w, `{}`)
}

func mustJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func TestLoadFindsWhatAServerDoesWrong(t *testing.T) {
	var held json.RawMessage
	for name, c := range map[string]struct {
		deliver func(n int, m json.RawMessage) []json.RawMessage
		want    wrong
	}{
		"nothing": {func(_ int, m json.RawMessage) []json.RawMessage { return []json.RawMessage{m} }, wrong{}},
		"one is lost": {func(n int, m json.RawMessage) []json.RawMessage {
			if n == 7 {
				return nil
			}
			return []json.RawMessage{m}
		}, wrong{Lost: 1}},
		"one comes twice": {func(n int, m json.RawMessage) []json.RawMessage {
			if n == 7 {
				return []json.RawMessage{m, m}
			}
			return []json.RawMessage{m}
		}, wrong{Doubled: 1}},
		"two change places": {func(n int, m json.RawMessage) []json.RawMessage {
			switch n {
			case 7:
				held = m
				return nil
			case 8:
				return []json.RawMessage{m, held}
			}
			return []json.RawMessage{m}
		}, wrong{Reordered: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			f.deliver = c.deliver
			l := &load{
				senders: f.devices(t, "S", 1), receivers: f.devices(t, "R", 1), devices: 1, rate: 100,
				length: 200 * time.Millisecond, patience: 200 * time.Millisecond,
			}
			out, err := l.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if out.Wrong != c.want {
				t.Errorf("want %+v, got %+v", c.want, out.Wrong)
			}
			if f.puts != 20 || out.Delay.Count != 20-c.want.Lost {
				t.Errorf("want 20 requests at 100/s in 200 ms, and the delay of each that arrived; got %d and %d", f.puts, out.Delay.Count)
			}
		})
	}
}

// Senders without a rate wait while the window is full, here for ever since nothing arrives.
func TestLoadKeepsItsWindow(t *testing.T) {
	const senders, window = 4, 30
	f := newFakeServer(t)
	f.deliver = func(int, json.RawMessage) []json.RawMessage { return nil }
	l := &load{
		senders: f.devices(t, "S", senders), receivers: f.devices(t, "R", 3), devices: 1, window: window, length: 300 * time.Millisecond,
	}
	out, err := l.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f.puts <= window || f.puts > window+senders {
		t.Errorf("want %d requests, and one more of each sender at most; got %d", window, f.puts)
	}
	if out.Wrong.Lost != f.puts || out.Delivered != 0 {
		t.Errorf("%d messages did not arrive, and %d are said to be lost, %v/s delivered", f.puts, out.Wrong.Lost, out.Delivered)
	}
}

// Each request of a load names so many receivers, each of them once.
func TestLoadToManyDevices(t *testing.T) {
	f := newFakeServer(t)
	l := &load{
		senders: f.devices(t, "S", 2), receivers: f.devices(t, "R", 5), devices: 5,
		warmUp: 20 * time.Millisecond, length: 100 * time.Millisecond, patience: time.Minute,
	}
	out, err := l.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counts := map[int]bool{}
	for _, queue := range f.queues {
		counts[len(queue)] = true
	}
	if len(f.queues) != 5 || len(counts) != 1 || out.Wrong.total() != 0 || out.FromDue.Count == 0 {
		t.Errorf("want as many messages for each of 5 devices, and the delays of those after the start; got %v, %+v", counts, out)
	}
}

func TestLoadGivesUp(t *testing.T) {
	const senders, behind = 4, 20
	f := newFakeServer(t)
	f.deliver = func(int, json.RawMessage) []json.RawMessage { return nil }
	l := &load{
		senders: f.devices(t, "S", senders), receivers: f.devices(t, "R", 3), devices: 1, rate: 1000, behind: behind, length: time.Minute,
	}
	start := time.Now()
	out, err := l.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !out.GaveUp || out.carried() || f.puts > behind+2*senders || time.Since(start) > 30*time.Second {
		t.Errorf("want the load to end when %d messages are on their way, got %+v after %d, %s", behind, out, f.puts, time.Since(start))
	}
}

func TestRefusedRequestsAreCounted(t *testing.T) {
	f := newFakeServer(t)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/3") {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(refusing.Close)
	f.queues["R0"] = []json.RawMessage{[]byte(`{"content":{"m":"of.0.0"}}`)} // from before the load, of which it is no part
	l := &load{
		senders: f.devices(t, "S", 2), receivers: f.devices(t, "R", 1), devices: 1, rate: 100, length: 100 * time.Millisecond, patience: time.Minute,
	}
	l.senders[0].server = newHomeserver(refusing.URL, newTransport())
	out, err := l.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if out.Refused != 1 || out.Wrong.total() != 0 || out.Delay.Count != 9 || out.carried() || !strings.Contains(out.Refusal, "503") {
		t.Errorf("want 1 of 10 refused and nothing wrong, got %+v", out)
	}
}
