package todevicemodule

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// configParser walks a section node by node, since a decoder into a struct stops at unknown keys or
// passes them over, and does not name what is above them.
type configParser struct {
	faults          []error
	enabledIsFaulty bool
}

func (p *configParser) fault(key string, node *yaml.Node, format string, args ...any) {
	p.enabledIsFaulty = p.enabledIsFaulty || key == ConfigSection || key == ConfigSection+".enabled"
	p.faults = append(p.faults, fmt.Errorf("%s: %s (line %d)", key, fmt.Sprintf(format, args...), node.Line))
}

func (p *configParser) section(node *yaml.Node, key string, keys map[string]any) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Kind != yaml.MappingNode {
		p.fault(key, node, "must be a section with keys and values")
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		full := key + "." + name.Value
		target, known := keys[name.Value]
		switch {
		case !known:
			p.fault(full, name, "is no key of this section; it has %s", strings.Join(sortedKeys(keys), ", "))
		case seen[name.Value]:
			p.fault(full, name, "is there twice")
		default:
			p.value(value, full, target)
		}
		seen[name.Value] = true
	}
}

func (p *configParser) value(node *yaml.Node, key string, target any) {
	switch target := target.(type) {
	case map[string]any:
		p.section(node, key, target)
	case *bool:
		p.decode(node, key, target, "true or false")
	case *int:
		p.decode(node, key, target, "a whole number")
	case *string:
		p.decode(node, key, target, "a string")
	case *time.Duration:
		p.decode(node, key, target, `a duration such as "24h" or "20s"`)
	}
}

func (p *configParser) decode(node *yaml.Node, key string, target any, wanted string) {
	_, duration := target.(*time.Duration)
	// yaml takes a bare number for a duration in nanoseconds, which nobody means.
	if node.Tag == "!!null" || duration && node.Tag == "!!int" || node.Decode(target) != nil {
		p.fault(key, node, "must be %s, but is %q", wanted, node.Value)
	}
}

func sortedKeys(keys map[string]any) []string {
	names := make([]string, 0, len(keys))
	for name := range keys {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
