package todevicemodule

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func readme(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// section returns the part of the README under a heading.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(readme(t), "\n"+heading+"\n")
	if !found {
		t.Fatalf("the README has no section %q", heading)
	}
	part, _, _ := strings.Cut(rest, "\n## ")
	return part
}

func TestReadmeNamesEveryKeyWithItsDefault(t *testing.T) {
	config := DefaultConfig()
	want := make(map[string]string)
	var walk func(prefix string, keys map[string]any)
	walk = func(prefix string, keys map[string]any) {
		for key, target := range keys {
			switch target := target.(type) {
			case map[string]any:
				walk(prefix+key+".", target)
			case *bool:
				want[prefix+key] = fmt.Sprint(*target)
			case *int:
				want[prefix+key] = fmt.Sprint(*target)
			case *string:
				want[prefix+key] = *target
			case *time.Duration:
				want[prefix+key] = strings.TrimSuffix(target.String(), "0m0s")
			}
		}
	}
	walk("", config.keys())
	want["database.connection_string"] = "the sync API's"
	want["admin.access_token_file"] = "none"
	got := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| `?([^|`]+?)`? \\|").FindAllStringSubmatch(section(t, "## Configuration"), -1) {
		got[row[1]] = row[2]
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("the README has %q as the default of %s, the code %q", got[key], key, value)
		}
	}
	for key := range got {
		if _, known := want[key]; !known {
			t.Errorf("the README names the key %s, which is not one", key)
		}
	}
}

func TestReadmeExamplesParse(t *testing.T) {
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(readme(t), -1)
	if len(examples) == 0 {
		t.Fatal("the README has no yaml")
	}
	for _, example := range examples {
		config, err := ParseConfig([]byte(example[1]))
		if err != nil || !config.Enabled {
			t.Errorf("%s\nenabled %v, %v", example[1], config.Enabled, err)
		}
	}
}

func TestReadmeNamesEveryMetric(t *testing.T) {
	families := everyMetric(t)
	var want []string
	for _, family := range families {
		want = append(want, family.GetName())
	}
	var got []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(dendrite_[a-z_]+)` \\|").FindAllStringSubmatch(section(t, "## Metrics"), -1) {
		got = append(got, row[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the README names the metrics %v, the code has %v", got, want)
	}
}

func TestReadmeCommandsExist(t *testing.T) {
	help, err := exec.Command("make", "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range regexp.MustCompile("(?m)(?:^|`)make ([a-z0-9-]+)").FindAllStringSubmatch(readme(t), -1) {
		if command[1] != "help" && !regexp.MustCompile(`(?m)^`+command[1]+` `).Match(help) {
			t.Errorf("the README names make %s, which is not in make help", command[1])
		}
	}
	for _, path := range []string{"cmd/dendrite-todevice", "host/example_test.go", "contract.go", "module.go", "storage/storagetest", "LICENSE"} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}
