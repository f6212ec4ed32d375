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

// document reads the module's section of a whole file. It looks at nothing else there, because the
// host lets some faults pass, such as a key that is there twice.
func (p *configParser) document(document *yaml.Node, keys map[string]any) {
	if len(document.Content) == 0 || document.Content[0].Kind != yaml.MappingNode {
		return // empty, or refused by the host
	}
	found := false
	root := document.Content[0]
	for i := 0; i+1 < len(root.Content); i += 2 {
		name, value := root.Content[i], resolved(root.Content[i+1])
		switch {
		case name.Value != ConfigSection:
		case found:
			p.fault(ConfigSection, name, "is there twice")
		default:
			found = true
			if value.ShortTag() != "!!null" {
				p.section(value, ConfigSection, keys)
			}
		}
	}
}

func (p *configParser) section(node *yaml.Node, key string, keys map[string]any) {
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
	node = resolved(node)
	switch target := target.(type) {
	case map[string]any:
		p.section(node, key, target)
	case *bool:
		// The host's yes and on are strings to this version of yaml.
		p.decode(node, key, target, "true or false", "!!bool", "!!str")
	case *int:
		p.decode(node, key, target, "a whole number", "!!int")
	case *string:
		p.decode(node, key, target, "a string", "!!str")
	case *time.Duration:
		p.decode(node, key, target, `a duration such as "24h" or "20s"`, "!!str")
	}
}

// decode compares the tag because yaml takes null for any value, and 1.5 for the whole number 1.
func (p *configParser) decode(node *yaml.Node, key string, target any, wanted string, tags ...string) {
	if !slices.Contains(tags, node.ShortTag()) || node.Decode(target) != nil {
		p.fault(key, node, "must be %s, but is %q", wanted, node.Value)
	}
}

// resolved follows an alias to what it stands for.
func resolved(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func sortedKeys(keys map[string]any) []string {
	names := make([]string, 0, len(keys))
	for name := range keys {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
