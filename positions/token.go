package positions

import (
	"strconv"
	"strings"
)

const (
	// maxNameBytes is how long the name of a stream may be.
	maxNameBytes = 32
	// maxParts bounds a token: so many parts are looked at, and so many are written. They take 53 bytes at most.
	maxParts = 32
)

// Token is a sync token taken apart: the host's own, and the positions of further streams behind it. The zero value stands for a /sync
// without since.
type Token struct {
	// Host is the host's own token, as it was.
	Host  string
	parts []part
}

type part struct {
	name     string
	position Position
}

// HasParts reports whether there is anything behind the host's own token.
func HasParts(token string) bool { return strings.IndexByte(token, '.') >= 0 }

// ParseToken takes any token apart. What is behind the first dot and is no part of the form name-42 is passed over, as Dendrite itself
// does: its tokens once had a suffix of another form (s478_0_0_0_0_13.dl-0-2), which clients may still have. Of two parts with one name
// the first counts. A token has at most 32 parts, and the rest is passed over too.
func ParseToken(token string) Token {
	host, suffix, found := strings.Cut(token, ".")
	t := Token{Host: host}
	if !found {
		return t
	}
	looked := 0
	for text := range strings.SplitSeq(suffix, ".") {
		if looked++; looked > maxParts {
			break
		}
		if p, ok := parsePart(text); ok {
			t.add(p)
		}
	}
	return t
}

// add adds a part, unless there is one of that name.
func (t *Token) add(p part) {
	if _, found := t.position(p.name); !found && len(t.parts) < maxParts {
		t.parts = append(t.parts, p)
	}
}

// position returns a stream's position, and false if the token has none.
func (t *Token) position(name string) (Position, bool) {
	for _, p := range t.parts {
		if p.name == name {
			return p.position, true
		}
	}
	return 0, false
}

// String returns the token with its parts.
func (t *Token) String() string {
	text := []byte(t.Host)
	for _, p := range t.parts {
		text = append(append(text, '.'), p.name...)
		text = strconv.AppendInt(append(text, '-'), int64(p.position), 10)
	}
	return string(text)
}

// parsePart takes what String writes, and nothing else that would mean the same.
func parsePart(text string) (part, bool) {
	name, digits, _ := strings.Cut(text, "-")
	position, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || position < 0 || !validName(name) || strconv.FormatInt(position, 10) != digits {
		return part{}, false
	}
	return part{name, Position(position)}, true
}

func validName(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if letter := c >= 'a' && c <= 'z'; !letter && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return true
}
