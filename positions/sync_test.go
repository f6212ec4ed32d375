package positions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

var device = types.Device{UserID: "@bob:x", DeviceID: "PHONE"}

// fixed is a provider of numbered items for everybody, up to latest, and of none for devices in deaf.
type fixed struct {
	latest Position
	deaf   map[types.Device]bool
	err    error
	calls  []string
	answer func(from, to Position) Part // in the place of the items
}

func (f *fixed) Latest(context.Context) (Position, error) { return f.latest, f.err }

func (f *fixed) Complete(_ context.Context, d types.Device, to Position, limits Limits) (Part, error) {
	f.calls = append(f.calls, fmt.Sprintf("complete to %d", to))
	return f.read(d, 0, to, limits)
}

func (f *fixed) Incremental(_ context.Context, d types.Device, from, to Position, limits Limits) (Part, error) {
	f.calls = append(f.calls, fmt.Sprintf("from %d to %d", from, to))
	return f.read(d, from, to, limits)
}

func (f *fixed) read(d types.Device, from, to Position, limits Limits) (Part, error) {
	if f.answer != nil {
		return f.answer(from, to), nil
	}
	page := NewPage(limits)
	for p := from + 1; p <= to && p <= from+1000 && !f.deaf[d]; p++ {
		if !page.Add(p, json.RawMessage(fmt.Sprint(p))) {
			break
		}
	}
	return page.Part(to), nil
}

func registry(t *testing.T, streams ...Stream) *Registry {
	t.Helper()
	r, err := NewRegistry(streams...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func stream(p Provider) Stream { return Stream{Name: "news", Key: "org.example.news", Provider: p} }

// read is one /sync request.
func read(t *testing.T, r *Registry, since string) (parts, next string) {
	t.Helper()
	s := r.Begin(device, ParseToken(since))
	defer s.End()
	news, err := s.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range news.Parts {
		parts += part.Key + "=" + string(part.JSON)
	}
	return parts, news.NextBatch("s2")
}

func TestRead(t *testing.T) {
	const three = `org.example.news={"events":[1,2,3]}`
	for _, test := range []struct {
		since, parts, next, call string
	}{
		{"", three, "s2.news-3", "complete to 3"},
		{"s1", three, "s2.news-3", "complete to 3"},
		{"s1.other-5", three, "s2.news-3.other-5", "complete to 3"},
		{"s1.news-0", three, "s2.news-3", "from 0 to 3"},
		{"s1.news-1", `org.example.news={"events":[2,3]}`, "s2.news-3", "from 1 to 3"},
		{"s1.other-5.news-3.another-6", "", "s2.news-3.other-5.another-6", ""},
		{"s1.news-4", "", "s2.news-3", ""}, // never handed out
		{"s1.news--1", three, "s2.news-3", "complete to 3"},
	} {
		provider := &fixed{latest: 3}
		parts, next := read(t, registry(t, stream(provider)), test.since)
		if calls := strings.Join(provider.calls, ", "); parts != test.parts || next != test.next || calls != test.call {
			t.Errorf("since %q: got %q, %q after %q, want %q, %q after %q", test.since, parts, next, calls, test.parts, test.next, test.call)
		}
	}
}

// A token that is ahead of the stream, since that was restored or the token forged, hides nothing that comes after it was seen.
func TestAheadOfTheStream(t *testing.T) {
	provider := &fixed{latest: 3}
	r := registry(t, stream(provider))
	_, next := read(t, r, "s1.news-50")
	provider.latest = 5
	if parts, next := read(t, r, next); parts != `org.example.news={"events":[4,5]}` || next != "s2.news-5" {
		t.Errorf("got %q, %q", parts, next)
	}
}

// What goes beyond the limits comes with the next requests, each item once.
func TestLimitsAlongTheChain(t *testing.T) {
	for name, limits := range map[string]Limits{"items": {Items: 3}, "bytes": {Bytes: 5}, "one too large": {Bytes: 1}} {
		t.Run(name, func(t *testing.T) {
			s := stream(&fixed{latest: 20})
			s.Limits = limits
			r := registry(t, s)
			var seen []int
			for next, rounds := "s1", 0; next != "s2.news-20"; rounds++ {
				var parts string
				if parts, next = read(t, r, next); rounds > 20 {
					t.Fatalf("no end: %v", seen)
				}
				var part struct{ Events []int }
				_, text, _ := strings.Cut(parts, "=")
				if err := json.Unmarshal([]byte(text), &part); err != nil {
					t.Fatal(err)
				}
				if n := len(part.Events); n == 0 || limits.Items > 0 && n > limits.Items || limits.Bytes > 0 && n > limits.Bytes {
					t.Errorf("a response has %v", part.Events)
				}
				seen = append(seen, part.Events...)
			}
			if want := "[1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20]"; fmt.Sprint(seen) != want {
				t.Errorf("got %v", seen)
			}
		})
	}
}

// A stream that can't be read, or says what can't be, is an error, and the next request begins where this one did.
func TestFailures(t *testing.T) {
	away := errors.New("away")
	for name, faulty := range map[string]*fixed{
		"away":            {latest: 3, err: away},
		"panics":          {latest: 3, answer: func(from, to Position) Part { panic("no") }},
		"no JSON":         {latest: 3, answer: func(from, to Position) Part { return Part{JSON: json.RawMessage(`{`), Position: to} }},
		"no UTF-8":        {latest: 3, answer: func(from, to Position) Part { return Part{JSON: json.RawMessage("\"\xff\""), Position: to} }},
		"too deep":        {latest: 3, answer: func(from, to Position) Part { return Part{JSON: nested(types.MaxContentDepth + 1), Position: to} }},
		"ahead":           {latest: 3, answer: func(from, to Position) Part { return Part{JSON: json.RawMessage(`1`), Position: to + 1} }},
		"stands still":    {latest: 3, answer: func(from, to Position) Part { return Part{JSON: json.RawMessage(`1`), Position: from} }},
		"goes back":       {latest: 3, answer: func(from, to Position) Part { return Part{JSON: json.RawMessage(`1`), Position: from - 2} }},
		"half of nothing": {latest: 3, answer: func(from, to Position) Part { return Part{Position: to - 1} }},
	} {
		t.Run(name, func(t *testing.T) {
			r := registry(t, stream(faulty))
			s := r.Begin(device, ParseToken("s1.news-1"))
			defer s.End()
			news, err := s.Read(t.Context())
			if err == nil || news.Parts != nil || !strings.Contains(err.Error(), "the stream news") {
				t.Fatalf("got %+v, %v", news, err)
			}
			if faulty.err != nil && !errors.Is(err, away) {
				t.Errorf("the error is %v", err)
			}
			faulty.err, faulty.answer = nil, nil
			if news, err = s.Read(t.Context()); err != nil || len(news.Parts) != 1 || string(news.Parts[0].JSON) != `{"events":[2,3]}` {
				t.Errorf("then: %+v, %v", news, err)
			}
		})
	}
}

func nested(depth int) json.RawMessage {
	return json.RawMessage(strings.Repeat("[", depth) + strings.Repeat("]", depth))
}

// A stream can't be at a position that no token can have: its clients would begin anew with each request.
func TestNegativeLatest(t *testing.T) {
	for _, since := range []string{"", "s1", "s1.news-0", "s1.news-3"} {
		s := registry(t, stream(&fixed{latest: -1})).Begin(device, ParseToken(since))
		if news, err := s.Read(t.Context()); err == nil || news.Parts != nil || !strings.Contains(err.Error(), "-1") {
			t.Errorf("since %q: got %+v, %v", since, news, err)
		}
		s.End()
	}
}

func TestWithoutStreams(t *testing.T) {
	for name, r := range map[string]*Registry{"none": nil, "empty": registry(t)} {
		r.WakeAll()
		r.WakeUsers(device.UserID)
		r.WakeDevices(device)
		if !r.Empty() {
			t.Errorf("%s has streams", name)
		}
		if parts, next := read(t, r, "s1.news-4.other-5"); parts != "" || next != "s2.news-4.other-5" {
			t.Errorf("%s: got %q, %q", name, parts, next)
		}
	}
}

// Each way to wake reaches whom it is for, and nobody else; what comes before Read is never lost.
func TestWaking(t *testing.T) {
	r := registry(t, stream(&fixed{}))
	laptop, other := types.Device{UserID: "@bob:x", DeviceID: "LAPTOP"}, types.Device{UserID: "@alice:x", DeviceID: "PHONE"}
	requests := map[types.Device]*Sync{}
	for _, d := range []types.Device{device, laptop, other} {
		requests[d] = r.Begin(d, Token{})
	}
	for name, test := range map[string]struct {
		wake func()
		want []types.Device
	}{
		"all":     {r.WakeAll, []types.Device{device, laptop, other}},
		"user":    {func() { r.WakeUsers("@bob:x", "@nobody:x") }, []types.Device{device, laptop}},
		"device":  {func() { r.WakeDevices(device, types.Device{UserID: "@nobody:x"}) }, []types.Device{device}},
		"twice":   {func() { r.WakeDevices(other); r.WakeUsers("@alice:x") }, []types.Device{other}},
		"nothing": {func() { r.WakeUsers(); r.WakeDevices() }, nil},
	} {
		test.wake()
		woken := 0
		for d, s := range requests {
			select {
			case <-s.Woken():
				woken++
				found := false
				for _, want := range test.want {
					found = found || want == d
				}
				if !found {
					t.Errorf("%s woke %v", name, d)
				}
			default:
			}
		}
		if woken != len(test.want) {
			t.Errorf("%s woke %d, want %v", name, woken, test.want)
		}
	}
	for _, s := range requests {
		s.End()
	}
	if len(r.waiting.ofUser) != 0 {
		t.Errorf("after the end there are %v", r.waiting.ofUser)
	}
	r.WakeAll()
}

// A request that finds nothing for its device goes on behind that, and asks for what is complete once.
func TestReadAgainGoesOn(t *testing.T) {
	provider := &fixed{latest: 3, deaf: map[types.Device]bool{device: true}}
	r := registry(t, stream(provider))
	s := r.Begin(device, ParseToken("s1"))
	defer s.End()
	for range 2 {
		news, err := s.Read(t.Context())
		if err != nil || news.Parts != nil || news.NextBatch("s2") != fmt.Sprintf("s2.news-%d", provider.latest) {
			t.Fatalf("got %+v, %v", news, err)
		}
		provider.latest += 2
	}
	provider.deaf = nil
	news, err := s.Read(t.Context())
	if err != nil || len(news.Parts) != 1 || string(news.Parts[0].JSON) != `{"events":[6,7]}` {
		t.Errorf("got %+v, %v", news, err)
	}
	if got := strings.Join(provider.calls, ", "); got != "complete to 3, from 3 to 5, from 5 to 7" {
		t.Errorf("the provider was asked for %s", got)
	}
}
