package todevicemodule_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule"
)

func parse(t *testing.T, yaml string) todevicemodule.Config {
	t.Helper()
	config, err := todevicemodule.ParseConfig([]byte(yaml))
	if err != nil {
		t.Fatalf("%s:\n%v", yaml, err)
	}
	return config
}

// faultyKeys returns the key that each line of the error begins with, in order.
func faultyKeys(t *testing.T, yaml string) []string {
	t.Helper()
	_, err := todevicemodule.ParseConfig([]byte(yaml))
	if err == nil {
		return nil
	}
	var keys []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		key, _, _ := strings.Cut(line, ": ")
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func TestDocumentedDefaults(t *testing.T) {
	want := todevicemodule.Config{
		SyncLimit:            100,
		TransactionRetention: 24 * time.Hour,
		MessageIDRetention:   7 * 24 * time.Hour,
		MaxMessageBytes:      65536,
		MaxRequestBytes:      10 * 1024 * 1024,
		RequestTimeout:       20 * time.Second,
		Limits:               todevicemodule.LimitsConfig{OriginEDUsBurst: 1000, KeyRequestsPerSecond: 20, KeyRequestsBurst: 100, BodyBytes: 64 << 20},
		TraceRecords:         50000,
		Admin:                todevicemodule.AdminConfig{URL: "http://localhost:8008"},
		Database:             todevicemodule.DatabaseConfig{MaxOpenConns: 90, MaxIdleConns: 2, ConnMaxLifetime: -1},
	}
	for _, yaml := range []string{
		"", "# empty\n", "global: {}\n", "to_device:\n", "to_device: ~\n", "to_device: {}\n",
		"to_device: {enabled: false}\n", "none: &none\nto_device: *none\n",
	} {
		if got := parse(t, yaml); got != want {
			t.Errorf("%q gives %+v", yaml, got)
		}
	}
	want.Enabled = true
	if got := parse(t, "to_device:\n  enabled: true\n"); got != want {
		t.Errorf("the defaults are %+v", got)
	}
}

func TestEveryKey(t *testing.T) {
	got := parse(t, `
version: 2
to_device:
  enabled: yes
  sync_limit: 50
  transaction_retention: 48h
  message_id_retention: 1000h
  max_message_bytes: 0x1000
  max_request_bytes: 4_096
  request_timeout: "1m30s"
  trace_records: 7
  limits:
    queue_messages: 100
    queue_bytes: 1048576
    queue_age: 24h
    origin_edus_per_second: 1
    origin_edus_burst: 100
    key_requests_per_second: 0
    key_requests_burst: 1
    body_bytes: 16777216
  admin:
    url: https://localhost:8448
    access_token_file: token
  database:
    connection_string: file:to_device.db
    max_open_conns: 5
    max_idle_conns: 3
    conn_max_lifetime: 60
`)
	want := todevicemodule.Config{
		Enabled: true, SyncLimit: 50, TransactionRetention: 48 * time.Hour, MessageIDRetention: 1000 * time.Hour,
		MaxMessageBytes: 4096, MaxRequestBytes: 4096, RequestTimeout: 90 * time.Second, TraceRecords: 7,
		Limits: todevicemodule.LimitsConfig{
			QueueMessages: 100, QueueBytes: 1 << 20, QueueAge: 24 * time.Hour, OriginEDUsPerSecond: 1, OriginEDUsBurst: 100, KeyRequestsBurst: 1,
			BodyBytes: 16 << 20,
		},
		Admin: todevicemodule.AdminConfig{URL: "https://localhost:8448", AccessTokenFile: "token"},
		Database: todevicemodule.DatabaseConfig{
			ConnectionString: "file:to_device.db", MaxOpenConns: 5, MaxIdleConns: 3, ConnMaxLifetime: 60,
		},
	}
	if got != want {
		t.Errorf("the configuration is %+v, want %+v", got, want)
	}
}

func TestAliases(t *testing.T) {
	got := parse(t, `
limit: &limit 7
database: &database {connection_string: file:a.db}
section: &section {enabled: true, sync_limit: *limit, database: *database}
to_device: *section
`)
	if !got.Enabled || got.SyncLimit != 7 || got.Database.ConnectionString != "file:a.db" {
		t.Errorf("the configuration is %+v", got)
	}
	keys := faultyKeys(t, "number: &number 86400000000000\nnull: &null\nto_device: {enabled: true, transaction_retention: *number, sync_limit: *null}\n")
	if want := []string{"to_device.sync_limit", "to_device.transaction_retention"}; !slices.Equal(keys, want) {
		t.Errorf("the faults are in %v, want %v", keys, want)
	}
}

func TestEveryFaultAtOnce(t *testing.T) {
	const yaml = `to_device:
  enabled: true
  sync_limit: 0
  transaction_retention: 3600
  max_message_bytes: many
  max_request_bytes: [1]
  request_timeout: 5m
  sync_limits: 5
  request_timeout: 1s
  database:
    connection_string: {}
    max_open_conns: 1
    max_idle_conns: ~
    conn_max_lifetime: 1.5
    connection: x
`
	want := []string{
		"to_device.database.conn_max_lifetime", "to_device.database.connection", "to_device.database.connection_string",
		"to_device.database.max_idle_conns", "to_device.database.max_open_conns", "to_device.max_message_bytes",
		"to_device.max_request_bytes", "to_device.request_timeout", "to_device.request_timeout", "to_device.sync_limit",
		"to_device.sync_limits", "to_device.transaction_retention",
	}
	if got := faultyKeys(t, yaml); !slices.Equal(got, want) {
		t.Errorf("the faults are in\n%v, want\n%v", got, want)
	}
	_, err := todevicemodule.ParseConfig([]byte(yaml))
	for _, hint := range []string{"line 4", `"many"`, "from 100ms to 4m0s", "is there twice", "conn_max_lifetime, connection_string, max_idle_conns, max_open_conns"} {
		if !strings.Contains(err.Error(), hint) {
			t.Errorf("the error does not say %s:\n%v", hint, err)
		}
	}
}

func TestFaultySections(t *testing.T) {
	for yaml, want := range map[string]string{
		"to_device: true":                                              "to_device",
		"to_device: []":                                                "to_device",
		"to_device: enabled":                                           "to_device",
		"to_device: {enabled: maybe}":                                  "to_device.enabled",
		"to_device: {enabled: 1}":                                      "to_device.enabled",
		"to_device: {enabled: }":                                       "to_device.enabled",
		"to_device: {enabled: false, enabled: true}":                   "to_device.enabled",
		"to_device: {enabled: true, Sync_Limit: 5}":                    "to_device.Sync_Limit",
		"to_device: {enabled: true, sync_limit: '5'}":                  "to_device.sync_limit",
		"to_device: {enabled: true, sync_limit: 1.5}":                  "to_device.sync_limit",
		"to_device: {enabled: true, sync_limit: 1e2}":                  "to_device.sync_limit",
		"to_device: {enabled: true, sync_limit: .inf}":                 "to_device.sync_limit",
		"to_device: {enabled: true, sync_limit: 99999999999999999999}": "to_device.sync_limit",
		"to_device: {enabled: true, request_timeout: 5}":               "to_device.request_timeout",
		"to_device: {enabled: true, request_timeout: 20.5}":            "to_device.request_timeout",
		"to_device: {enabled: true, request_timeout: 5 s}":             "to_device.request_timeout",
		"to_device: {enabled: true, request_timeout: }":                "to_device.request_timeout",
		"to_device: {enabled: true, database: }":                       "to_device.database",
		"to_device: {enabled: true, database: 'file:x.db'}":            "to_device.database",
		"to_device: {enabled: true, database: {connection_string: 5}}": "to_device.database.connection_string",
		"to_device: {enabled: true, {a: b}: c}":                        "to_device.",
		"to_device: {enabled: true}\nto_device: {}":                    "to_device",
		"a: &a {sync_limit: 5}\nto_device: {enabled: true, <<: *a}":    "to_device.<<",
	} {
		if got := faultyKeys(t, yaml); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: the faults are in %q, want %q", yaml, got, want)
		}
	}
	for _, yaml := range []string{"to_device: {", "\t", "to_device: *unknown"} {
		if _, err := todevicemodule.ParseConfig([]byte(yaml)); err == nil || !strings.Contains(err.Error(), "to_device") {
			t.Errorf("%q: the error is %v", yaml, err)
		}
	}
}

func TestBounds(t *testing.T) {
	tests := []struct {
		key, inside, outside string
	}{
		{"sync_limit", "1", "0"},
		{"sync_limit", "1000", "1001"},
		{"sync_limit", "1", "-1"},
		{"transaction_retention", "1h", "59m59.999s"},
		{"message_id_retention", "168h", "167h59m59s"},
		{"message_id_retention", "8760h", "8760h1s"},
		{"transaction_retention", "8760h", "8760h0m1ns"},
		{"max_message_bytes", "1", "0"},
		{"max_request_bytes", "65536", "65535"},
		{"max_request_bytes", "1073741824", "1073741825"},
		{"request_timeout", "100ms", "99999us"},
		{"request_timeout", "4m", "4m1ns"},
		{"max_message_bytes: 16777216, max_request_bytes", "16777216", "16777215"},
		{"max_request_bytes: 1073741824, max_message_bytes", "16777216", "16777217"},
		{"max_request_bytes: 1, max_message_bytes", "1", "0"},
	}
	section := func(key, value string) string { return "to_device: {enabled: true, " + key + ": " + value + "}" }
	for _, test := range tests {
		if keys := faultyKeys(t, section(test.key, test.inside)); keys != nil {
			t.Errorf("%s: %s has faults in %v", test.key, test.inside, keys)
		}
		name := test.key[strings.LastIndex(test.key, " ")+1:]
		if keys := faultyKeys(t, section(test.key, test.outside)); !slices.Equal(keys, []string{"to_device." + name}) {
			t.Errorf("%s: %s has faults in %v", test.key, test.outside, keys)
		}
	}
	for _, test := range []struct{ key, inside, outside string }{
		{"trace_records", "0", "-1"},
		{"trace_records", "1000000", "1000001"},
		{"limits.queue_messages", "0", "99"},
		{"limits.queue_messages", "100", "-1"},
		{"limits.queue_bytes", "1048576", "1048575"},
		{"limits.queue_age", "0s", "23h59m59s"},
		{"limits.queue_age", "24h", "-24h"},
		{"limits.origin_edus_per_second", "0", "-1"},
		{"limits.origin_edus_burst", "100", "99"},
		{"limits.key_requests_per_second", "1000000", "1000001"},
		{"limits.key_requests_burst", "1", "0"},
		{"limits.body_bytes", "16777216", "16777215"},
		{"limits.body_bytes", "1099511627776", "1099511627777"},
		{"admin.url", "unix:///run/dendrite.sock", "localhost:8008"},
		{"admin.url", "http://[::1]:8008/prefix", "http://"},
		{"admin.url", "https://example.org", "https:///path"},
		{"admin.url", "https://example.org/", "https://user@example.org"},
		{"admin.url", "http://localhost", "http://localhost?x=y"},
		{"admin.url", "http://localhost", "'http://localhost#x'"},
		{"admin.url", "http://localhost", "''"},
		{"admin.url", "unix:///s", "unix://run/dendrite.sock"},
		{"admin.url", "unix:/s", "'unix://'"},
		{"admin.url", "http://localhost", "http://a b"},
		{"database.connection_string", "''", "dendrite.db"},
		{"database.connection_string", "file:dendrite.db", "'file:'"},
		{"database.connection_string", "file:///var/lib/dendrite.db", "sqlite:dendrite.db"},
		{"database.connection_string", "postgresql://u:p@localhost/d?sslmode=disable", "mysql://u:p@localhost/d?ssl=x"},
		{"database.connection_string", "postgres:///d", "postgres://u:p@localhost:port/d"},
		{"database.connection_string", "host=/run dbname=d password=a://b", "' '"},
	} {
		nested := func(value string) string {
			text := "to_device:\n  enabled: true"
			for depth, key := range strings.Split(test.key, ".") {
				text += "\n" + strings.Repeat("  ", depth+1) + key + ":"
			}
			return text + " " + value
		}
		if keys := faultyKeys(t, nested(test.inside)); keys != nil {
			t.Errorf("%s: %s has faults in %v", test.key, test.inside, keys)
		}
		if keys := faultyKeys(t, nested(test.outside)); !slices.Equal(keys, []string{"to_device." + test.key}) {
			t.Errorf("%s: %s has faults in %v", test.key, test.outside, keys)
		}
	}
	for value, ok := range map[string]bool{"0": true, "1": false, "2": true, "-1": true} {
		if keys := faultyKeys(t, "to_device: {enabled: true, database: {max_open_conns: "+value+"}}"); (keys == nil) != ok {
			t.Errorf("max_open_conns: %s has faults in %v", value, keys)
		}
	}
}

// A connection string has a password in it, and faults are printed and logged.
func TestFaultyConnectionStringIsNotRepeated(t *testing.T) {
	_, err := todevicemodule.ParseConfig([]byte("to_device: {enabled: true, database: {connection_string: 'postgres://u:secret@h:x/d'}}"))
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error is %v", err)
	}
}

func TestDisabledSectionHasNoFaults(t *testing.T) {
	for _, yaml := range []string{
		"to_device: {enabled: false, sync_limit: 0, unknown: 1, database: {x: y}, request_timeout: 5}",
		"to_device: {sync_limit: 0}",
		"to_device: {unknown: 1}",
	} {
		if config := parse(t, yaml); config.Enabled {
			t.Errorf("%s is enabled", yaml)
		}
	}
}

// TestHostsSample takes the dendrite.yaml that each host ships, which has anchors, comments and every
// section of its own.
func TestHostsSample(t *testing.T) {
	for host, dir := range map[string]string{"github.com/matrix-org/dendrite": ".", "github.com/element-hq/dendrite": "hosts/element-hq"} {
		t.Run(host, func(t *testing.T) { testHostsSample(t, hostsSample(t, dir, host)) })
	}
}

func testHostsSample(t *testing.T, sample string) {
	t.Helper()
	if config := parse(t, sample); config != todevicemodule.DefaultConfig() {
		t.Errorf("without a section the configuration is %+v", config)
	}
	if config := parse(t, sample+"\nto_device:\n  enabled: true\n  sync_limit: 5\n"); !config.Enabled || config.SyncLimit != 5 {
		t.Errorf("the configuration is %+v", config)
	}
	// What is wrong elsewhere is no business of the module's; the host lets some of it pass.
	if config := parse(t, sample+"\nunknown: 1\nlogging: []\nto_device: {enabled: true}\n"); !config.Enabled {
		t.Errorf("the configuration is %+v", config)
	}
}

// hostsSample returns the sample of a host, of the version that the module in dir asks for.
func hostsSample(t testing.TB, dir, host string) string {
	t.Helper()
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", host)
	list.Dir = dir
	there, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	sample, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(there)), "dendrite-sample.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(sample)
}

// FuzzConfig takes any file: what is accepted and enabled lies within the bounds, and each fault
// names its key.
func FuzzConfig(f *testing.F) {
	f.Fuzz(func(t *testing.T, yaml []byte) {
		config, err := todevicemodule.ParseConfig(yaml)
		if err != nil {
			if !strings.Contains(err.Error(), todevicemodule.ConfigSection) {
				t.Errorf("the error does not name the section: %v", err)
			}
			return
		}
		if !config.Enabled {
			return
		}
		if config.SyncLimit < 1 || config.SyncLimit > 1000 ||
			config.TransactionRetention < time.Hour || config.TransactionRetention > 8760*time.Hour ||
			config.MaxMessageBytes < 1 || config.MaxMessageBytes > 16<<20 ||
			config.MaxRequestBytes < config.MaxMessageBytes || config.MaxRequestBytes > 1<<30 ||
			config.RequestTimeout < 100*time.Millisecond || config.RequestTimeout > 4*time.Minute ||
			config.Database.MaxOpenConns == 1 {
			t.Errorf("accepted was %+v", config)
		}
	})
}
