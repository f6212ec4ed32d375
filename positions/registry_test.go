package positions

import (
	"fmt"
	"strings"
	"testing"
)

func TestRegistryRefuses(t *testing.T) {
	good := func(change func(*Stream)) Stream {
		s := stream(&fixed{})
		change(&s)
		return s
	}
	for _, test := range []struct {
		fault  string // what the error says; empty for none
		change func(*Stream)
	}{
		{"", func(*Stream) {}},
		{"", func(s *Stream) { s.Name = "a" + strings.Repeat("_9", 15) + "z" }},
		{"", func(s *Stream) { s.Key = "unprefixed" }},
		{"a name is", func(s *Stream) { s.Name = "" }},
		{"a name is", func(s *Stream) { s.Name = "News" }},
		{"a name is", func(s *Stream) { s.Name = "9news" }},
		{"a name is", func(s *Stream) { s.Name = "new-s" }},
		{"a name is", func(s *Stream) { s.Name = "new.s" }},
		{"a name is", func(s *Stream) { s.Name = strings.Repeat("n", 33) }},
		{"something else", func(s *Stream) { s.Key = "to_device" }},
		{"something else", func(s *Stream) { s.Key = "next_batch" }},
		{"something else", func(s *Stream) { s.Key = "org.matrix.msc2732.device_unused_fallback_key_types" }},
		{"org.example.m.news", func(s *Stream) { s.Key = "m.news" }},
		{"no namespaced identifier", func(s *Stream) { s.Key = "" }},
		{"no namespaced identifier", func(s *Stream) { s.Key = "Org" }},
		{"no namespaced identifier", func(s *Stream) { s.Key = "org.example.*" }},
		{"no namespaced identifier", func(s *Stream) { s.Key = `org\.example` }},
		{"no namespaced identifier", func(s *Stream) { s.Key = strings.Repeat("k", 256) }},
		{"no provider", func(s *Stream) { s.Provider = nil }},
		{"nothing through", func(s *Stream) { s.Limits.Items = -1 }},
		{"nothing through", func(s *Stream) { s.Limits.Bytes = -1 }},
	} {
		_, err := NewRegistry(good(test.change))
		if test.fault == "" && err != nil || test.fault != "" && (err == nil || !strings.Contains(err.Error(), test.fault)) {
			t.Errorf("the error is %v, want %q", err, test.fault)
		}
	}
}

func TestRegistryTellsEveryFault(t *testing.T) {
	one := stream(&fixed{})
	sameName, sameKey := one, one
	sameName.Key, sameKey.Name = "org.example.other", "other"
	_, err := NewRegistry(one, sameName, sameKey)
	if err == nil || !strings.Contains(err.Error(), "has that name") || !strings.Contains(err.Error(), "has the key") {
		t.Errorf("the error is %v", err)
	}
	var many []Stream
	for n := range maxStreams + 1 {
		many = append(many, Stream{Name: fmt.Sprint("n", n), Key: fmt.Sprint("org.example.", n), Provider: &fixed{}})
	}
	if _, err = NewRegistry(many...); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("the error is %v", err)
	}
	if _, err = NewRegistry(many[1:]...); err != nil {
		t.Error(err)
	}
}

func TestLimitsHaveDefaults(t *testing.T) {
	r := registry(t, stream(&fixed{}))
	if got, want := r.streams[0].Limits, (Limits{Items: 100, Bytes: 1 << 20}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
