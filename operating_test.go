package todevicemodule

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
)

// inCode returns what stands in the document as code.
func inCode(text string) (code []string) {
	for _, span := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		code = append(code, span[1])
	}
	return code
}

// configKeys returns the full keys of the section to_device.
func configKeys() (keys []string) {
	config := DefaultConfig()
	var walk func(prefix string, part map[string]any)
	walk = func(prefix string, part map[string]any) {
		for key, target := range part {
			if below, ok := target.(map[string]any); ok {
				walk(prefix+key+".", below)
			} else {
				keys = append(keys, prefix+key)
			}
		}
	}
	walk("", config.keys())
	return keys
}

// othersNames look like keys of to_device, and are names of Dendrite's and others.
var othersNames = []string{
	"to_device", "global.metrics", "rate_limiting", "max_idle_conns", "max_open_conns", "max_connections", "org.matrix.msgid",
	"prometheus.yml", "rule_files", "pg_isready", "pg_dump", "synchronous_standby_names",
	"keyserver_fallback_keys", "federation_api", "deny_networks", "allow_networks", "sync_api.search", "index_path",
	"room_server",
}

func TestOperatingNamesKeysThatExist(t *testing.T) {
	keys := configKeys()
	named := 0
	for _, code := range inCode(readText(t, operatingFile)) {
		labelValue := slices.Contains(dropReasons, code) || slices.Contains(receivedOutcomes, code)
		if !regexp.MustCompile(`^[a-z]+[._][a-z_.]+$`).MatchString(code) || labelValue || strings.HasPrefix(code, "todevice_") ||
			slices.Contains(othersNames, code) {
			continue
		}
		named++
		if !slices.Contains(keys, code) {
			t.Errorf("%s names %s, which is no key of to_device", operatingFile, code)
		}
	}
	if named < 8 {
		t.Errorf("only %d keys were found", named)
	}
	for _, metric := range regexp.MustCompile(`dendrite_todevice_[a-z_]+`).FindAllString(readText(t, operatingFile), -1) {
		if everySeries(t)[metric] == nil {
			t.Errorf("%s names %s, which is no metric", operatingFile, metric)
		}
	}
}

func TestOperatingExampleIsAccepted(t *testing.T) {
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(readText(t, operatingFile), -1)
	if len(examples) != 1 {
		t.Fatalf("%s has %d examples", operatingFile, len(examples))
	}
	config, err := ParseConfig([]byte(strings.ReplaceAll("\n"+examples[0][1], "\n   ", "\n")))
	if err != nil || !config.Enabled {
		t.Errorf("enabled %v, %v", config.Enabled, err)
	}
}

// Somebody woken at night follows the links.
func TestOperatingLinksLeadSomewhere(t *testing.T) {
	text := readText(t, operatingFile)
	anchors := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		anchor := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		anchors[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	links := regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(text, -1)
	if len(links) < 5 {
		t.Fatalf("only %d links were found", len(links))
	}
	for _, link := range links {
		file, anchor, isAnchor := strings.Cut(link[1], "#")
		if isAnchor && file == "" && !anchors[anchor] {
			t.Errorf("there is no heading for #%s", anchor)
		}
		if file != "" {
			if _, err := os.Stat(filepath.Join("docs", file)); err != nil {
				t.Error(err)
			}
		}
	}
	for _, file := range regexp.MustCompile("`(deploy/[^`]+)`").FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(file[1]); err != nil {
			t.Error(err)
		}
	}
}

// Every step and reason that a trace can show is explained, and every table is one that the migrations make.
func TestOperatingExplainsEveryStep(t *testing.T) {
	guide := part(t, `## A user sees "Unable to decrypt"`)
	for _, typeName := range []string{"Step", "Reason"} {
		for _, value := range constants(t, "trace/record.go", typeName) {
			if words := strings.ReplaceAll(value, "_", " "); typeName == "Reason" && notInGuide[value] == "" || typeName == "Step" {
				if !strings.Contains(guide, words) {
					t.Errorf("%q is not explained", words)
				}
			}
		}
	}
	migrations := allOf(t, "storage/postgres/migrations", ".sql")
	backup := part(t, "## Backup and restore")
	for _, table := range regexp.MustCompile(`CREATE TABLE (?:IF NOT EXISTS )?(todevice_\w+)`).FindAllStringSubmatch(migrations, -1) {
		if !strings.Contains(backup, "`"+table[1]+"`") {
			t.Errorf("the table %s is not among those to back up", table[1])
		}
	}
}

// The alert on what other servers send says the outcome, and no more.
func TestOperatingExplainsEveryOutcome(t *testing.T) {
	_, rest, _ := strings.Cut(part(t, "## Alerts"), "\n### ToDeviceInboundRefused\n")
	text, _, _ := strings.Cut(rest, "\n### ")
	for _, outcome := range receivedOutcomes {
		if outcome != consumers.EDUApplied && !strings.Contains(text, "`"+outcome+"`") {
			t.Errorf("%s is not explained", outcome)
		}
	}
}

// notInGuide are reasons that no user's message is dropped for, and why.
var notInGuide = map[string]string{
	"invalid_user":     "the sender's client has a fault that no operator can mend",
	"not_federating":   "the server is alone by the operator's own choice",
	"database_refuses": "it has an alert of its own",
}

func part(t *testing.T, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(readText(t, operatingFile), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", operatingFile, heading)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}

// allOf returns the text of the files below a directory that end like that, tests left out.
func allOf(t *testing.T, dir, suffix string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, suffix) || strings.HasSuffix(path, "_test.go") {
			return err
		}
		content, err := os.ReadFile(path)
		all.Write(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// What the log is said to say stands in the code, and a panel that is named is one of the dashboard.
func TestOperatingQuotesTheLog(t *testing.T) {
	source := allOf(t, ".", ".go")
	known := []string{"Unable to decrypt", "to-device"}
	for _, p := range readDashboard(t).Panels {
		known = append(known, p.Title)
	}
	text := part(t, "## Alerts") + part(t, `## A user sees "Unable to decrypt"`) + part(t, "## NATS outside of Dendrite")
	text = strings.ReplaceAll(text, "\n", " ")
	quoted := regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(text, -1)
	if len(quoted) < 8 {
		t.Fatalf("only %d quotations were found", len(quoted))
	}
	for _, q := range quoted {
		if phrase := strings.Join(strings.Fields(q[1]), " "); !slices.Contains(known, phrase) && !strings.Contains(source, phrase) {
			t.Errorf("nothing says %q", phrase)
		}
	}
}
