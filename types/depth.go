package types

// MaxContentDepth is how deep objects and arrays may be nested in a content. Clients decode JSON by
// recursion, and the encoder of a /sync response gives up at 10,000 levels: one deeper message would
// keep its device from everything after it.
const MaxContentDepth = 100

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
