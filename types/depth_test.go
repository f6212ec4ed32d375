package types

import (
	"slices"
	"strings"
	"testing"
)

func TestDepth(t *testing.T) {
	for json, want := range map[string]int{
		`1`:                        0,
		`"{[{["`:                   0,
		`{}`:                       1,
		`{"a":1,"b":"}"}`:          1,
		`{"a":"\"{","b":{"c":[]}}`: 3,
		`{"a":"\\","b":{}}`:        2,
		`[[],[[]],{}]`:             3,
		strings.Repeat(`{"a":`, 500) + `1` + strings.Repeat(`}`, 500): 500,
	} {
		if got := Depth([]byte(json)); got != want {
			t.Errorf("%.40s: depth %d, want %d", json, got, want)
		}
	}
}

func TestIsTooDeep(t *testing.T) {
	nested := func(levels int) string { return strings.Repeat(`{"a":[`, levels/2) + strings.Repeat(`]}`, levels/2) }
	for json, want := range map[string]bool{
		nested(MaxContentDepth):     false,
		nested(MaxContentDepth + 2): true,
		`{"many":[` + strings.Repeat(`[],{},`, MaxContentDepth) + `1]}`:   false,
		`{"in a string":"` + strings.Repeat(`{[`, MaxContentDepth) + `"}`: false,
	} {
		if got := IsTooDeep([]byte(json)); got != want {
			t.Errorf("%.40s: %v", json, got)
		}
	}
}

func TestNesting(t *testing.T) {
	for text, want := range map[string]int64{
		``: 0, `1`: 0, `"{["`: 0, `{}`: 2, `[1]`: 3, `[[]]`: 4 + 2, `{"a":{"b":[1,2]}}`: 17 + 11 + 5, `[[],[]]`: 7 + 2 + 2,
		`{"}\\":"\"}"}`: 13, `["\\",[]]`: 9 + 2, `]]{}`: 2,
	} {
		for _, size := range []int{1, 3, 100} { // of each piece
			var n Nesting
			for piece := range slices.Chunk([]byte(text), size) {
				n.Add(piece)
			}
			if n.Bytes() != want {
				t.Errorf("%s in pieces of %d: %d bytes, want %d", text, size, n.Bytes(), want)
			}
		}
	}
}
