package hosttest

import (
	"regexp"
	"strings"
	"testing"
)

// Subtests, the documentation and whoever reads a failure know promises by their names.
func TestPromisesHaveNamesAndTexts(t *testing.T) {
	name := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`)
	seen := make(map[string]bool)
	for _, p := range Promises() {
		if !name.MatchString(p.Name) {
			t.Errorf("the name %q", p.Name)
		}
		if seen[p.Name] {
			t.Errorf("%s: there are two of them", p.Name)
		}
		seen[p.Name] = true
		if !strings.HasSuffix(p.Text, ".") || strings.Contains(p.Text, "\n") {
			t.Errorf("%s: the text %q is no sentence", p.Name, p.Text)
		}
		if p.check == nil {
			t.Errorf("%s: it is not checked", p.Name)
		}
	}
}
