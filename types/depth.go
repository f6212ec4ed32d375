package types

import "bytes"

// MaxContentDepth is how deep objects and arrays may be nested in a content. Clients decode JSON by
// recursion, and the encoder of a /sync response gives up at 10,000 levels: one deeper message would
// keep its device from everything after it.
const MaxContentDepth = 100

// IsTooDeep reports whether valid JSON is nested deeper than MaxContentDepth. Hardly any JSON has so many objects and arrays at all, which
// takes a fraction of the time to find out.
func IsTooDeep(json []byte) bool {
	return bytes.Count(json, []byte("{"))+bytes.Count(json, []byte("[")) > MaxContentDepth && Depth(json) > MaxContentDepth
}

// Depth returns how deep objects and arrays are nested in valid JSON: 1 for an object of plain values,
// 0 for a plain value.
func Depth(json []byte) int {
	depth, deepest := 0, 0
	inString := false
	for i := 0; i < len(json); i++ {
		switch c := json[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

// Nesting adds up the sizes of all objects and arrays in JSON, each with everything in it: what it costs to copy each of them once. Its zero
// value is ready to use.
type Nesting struct {
	bytes, levels     int64
	inString, escaped bool
}

// Bytes returns the sum.
func (n *Nesting) Bytes() int64 { return n.bytes }

// Add takes the next piece of the JSON.
func (n *Nesting) Add(piece []byte) {
	for _, c := range piece {
		switch {
		case n.escaped:
			n.escaped = false
		case n.inString && c == '\\':
			n.escaped = true
		case c == '"':
			n.inString = !n.inString
		case n.inString:
		case c == '{' || c == '[':
			n.levels++
		case c == '}' || c == ']':
			n.bytes += n.levels // the bracket itself
			n.levels = max(0, n.levels-1)
			continue
		}
		n.bytes += n.levels
	}
}
