package todevicemodule

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
)

// requirements returns the versions that a go.mod file asks for.
func requirements(t *testing.T, path string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := modfile.Parse(path, content, nil)
	if err != nil {
		t.Fatal(err)
	}
	versions := make(map[string]string, len(file.Require))
	for _, r := range file.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	return versions
}

// advisories returns the versions under a heading of docs/advisories.md.
func advisories(t *testing.T, heading string) map[string]string {
	t.Helper()
	_, part, _ := strings.Cut(readText(t, "docs/advisories.md"), "\n## "+heading+"\n")
	part, _, _ = strings.Cut(part, "\n## ")
	versions := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\S+)` \\| (\\S+) \\| .*(?:CVE|GHSA|GO)-").FindAllStringSubmatch(part, -1) {
		if !semver.IsValid(row[2]) {
			t.Errorf("docs/advisories.md: %q is no version", row[2])
		}
		versions[row[1]] = row[2]
	}
	if len(versions) == 0 {
		t.Fatalf("docs/advisories.md has nothing under %q", heading)
	}
	return versions
}

// elementHQ is the go.mod file of the module in element-hq/dendrite.
const elementHQ = "hosts/element-hq/go.mod"

// A version with a published fault comes back easily, since Dendrite asks for it.
func TestNoVersionWithAKnownFault(t *testing.T) {
	files := make(map[string]map[string]string)
	for _, path := range []string{"go.mod", "e2e/go.mod", elementHQ} {
		files[path] = requirements(t, path)
	}
	for module, least := range advisories(t, "At least these versions") {
		found := false
		for path, versions := range files {
			version, there := versions[module]
			found = found || there
			if there && semver.Compare(version, least) < 0 {
				t.Errorf("%s has %s %s; docs/advisories.md says why it must be %s at least", path, module, version, least)
			}
		}
		if !found {
			t.Errorf("docs/advisories.md names %s, which nothing requires any more", module)
		}
	}
	for module, mended := range advisories(t, "Known, and as Dendrite has it") {
		if version, there := files["go.mod"][module]; !there || semver.Compare(version, mended) >= 0 {
			t.Errorf("go.mod has %s %q; docs/advisories.md still says that it is below %s", module, version, mended)
		}
		if version, there := files[elementHQ][module]; there && semver.Compare(version, mended) < 0 {
			t.Errorf("%s has %s %s; docs/advisories.md says that it is mended there, in %s", elementHQ, module, version, mended)
		}
	}
}
