package positions

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

func TestTokens(t *testing.T) {
	for token, want := range map[string]Token{
		"":                         {},
		"s1_2_3_4_5_6_7_8_9":       {Host: "s1_2_3_4_5_6_7_8_9"},
		"s1_2.news-42":             {"s1_2", []part{{"news", 42}}},
		"s1_2.news-42.a_1-0":       {"s1_2", []part{{"news", 42}, {"a_1", 0}}},
		".news-42":                 {"", []part{{"news", 42}}},
		"nonsense.news-1":          {"nonsense", []part{{"news", 1}}},
		"s1.n-9223372036854775807": {"s1", []part{{"n", 9223372036854775807}}},
		// What is no part is passed over, and what is beside it counts.
		"s478_0_0_0_0_13.dl-0-2":           {Host: "s478_0_0_0_0_13"},
		"s1.":                              {Host: "s1"},
		"s1..news-1.":                      {"s1", []part{{"news", 1}}},
		"s1.news":                          {Host: "s1"},
		"s1.news-":                         {Host: "s1"},
		"s1.-1":                            {Host: "s1"},
		"s1.news--1":                       {Host: "s1"},
		"s1.news-+1":                       {Host: "s1"},
		"s1.news-01":                       {Host: "s1"},
		"s1.news-1+":                       {Host: "s1"},
		"s1.News-1":                        {Host: "s1"},
		"s1.1news-1":                       {Host: "s1"},
		"s1._news-1":                       {Host: "s1"},
		"s1.néws-1":                        {Host: "s1"},
		"s1.n-9223372036854775808.other-1": {"s1", []part{{"other", 1}}},
		"s1." + strings.Repeat("n", maxNameBytes) + "-1":   {"s1", []part{{strings.Repeat("n", maxNameBytes), 1}}},
		"s1." + strings.Repeat("n", maxNameBytes+1) + "-1": {Host: "s1"},
		"s1.news-1.news-2": {"s1", []part{{"news", 1}}},
	} {
		if got := ParseToken(token); got.Host != want.Host || !slices.Equal(got.parts, want.parts) {
			t.Errorf("%q was taken for %+v, want %+v", token, got, want)
		}
	}
}

func TestTokensAreBounded(t *testing.T) {
	var parts []string
	for n := range maxParts + 5 {
		parts = append(parts, fmt.Sprintf("%s%02d-9223372036854775807", strings.Repeat("n", maxNameBytes-2), n))
	}
	token := ParseToken("s1." + strings.Join(parts, "."))
	if want := "s1." + strings.Join(parts[:maxParts], "."); token.String() != want {
		t.Errorf("got %q, want %q", token.String(), want)
	}
	if most := len("s1") + 53*maxParts; len(token.String()) > most {
		t.Errorf("a token has %d bytes, want at most %d", len(token.String()), most)
	}
	token = ParseToken("s1" + strings.Repeat(".", maxParts) + ".news-1")
	if token.String() != "s1" {
		t.Errorf("a part behind %d others counts: %q", maxParts, token.String())
	}
}

// FuzzToken takes any since token through a /sync response, and back again.
func FuzzToken(f *testing.F) {
	for _, seed := range []string{"", "s1_2_3_4_5_6_7_8_9.news-42", "s478_0_0_0_0_13.dl-0-2", "s1.a-1.b-2.a-3.news-9223372036854775808", ".", "s1.news-007.-"} {
		f.Add(seed, int64(7))
	}
	f.Fuzz(func(t *testing.T, since string, position int64) {
		token := ParseToken(since)
		before, suffix, found := strings.Cut(since, ".")
		if token.Host != before || found != HasParts(since) {
			t.Fatalf("%q has %q as the host's own", since, token.Host)
		}
		again := ParseToken(token.String())
		if again.Host != token.Host || !slices.Equal(again.parts, token.parts) {
			t.Fatalf("%q became %q, which means something else", since, token.String())
		}
		if len(token.parts) > maxParts || len(token.String()) > len(token.Host)+53*maxParts || len(token.String()) > len(since) {
			t.Fatalf("%q became %q", since, token.String())
		}
		// No part is lost that stands alone in its name, nor is one made up.
		first := map[string]string{}
		for i, text := range strings.Split(suffix, ".") {
			p, ok := parsePart(text)
			if !ok || i >= maxParts {
				continue
			}
			if (&Token{parts: []part{p}}).String() != "."+text {
				t.Fatalf("%q was read as %+v", text, p)
			}
			if first[p.name] == "" {
				first[p.name] = text
			}
		}
		for name, text := range first {
			if at, _ := token.position(name); text != fmt.Sprintf("%s-%d", name, at) {
				t.Fatalf("%q lost %s: %+v", since, text, token.parts)
			}
		}
		if len(first) != len(token.parts) {
			t.Fatalf("%q has %v, and became %+v", since, first, token.parts)
		}
		// A server with a stream takes over its position and the others.
		if position < 0 {
			return
		}
		r, err := NewRegistry(Stream{Name: "news", Key: "org.example.news", Provider: &fixed{latest: Position(position), deaf: map[types.Device]bool{device: true}}})
		if err != nil {
			t.Fatal(err)
		}
		s := r.Begin(device, token)
		defer s.End()
		news, err := s.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next := ParseToken(news.NextBatch("s5_6"))
		if next.Host != "s5_6" {
			t.Fatalf("the host's own became %q", next.Host)
		}
		if at, known := next.position("news"); !known || at != Position(position) {
			t.Fatalf("%q became %q with the stream at %d", since, news.NextBatch("s5_6"), position)
		}
		room := maxParts - 1
		for _, p := range token.parts {
			if p.name == "news" {
				continue
			}
			if at, _ := next.position(p.name); room > 0 && at != p.position {
				t.Fatalf("%q lost %+v: %q", since, p, news.NextBatch("s5_6"))
			}
			room--
		}
	})
}
