package todevicemodule

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// ConfigSection is the key of the module's part of dendrite.yaml.
const ConfigSection = "to_device"

// Config is the to_device section of dendrite.yaml.
type Config struct {
	// Enabled switches the module on. Default: false, and the host does what it does without the module.
	Enabled bool
	// SyncLimit is the most messages in one /sync response: 1 to 1,000. Default: 100, as the
	// specification has it.
	SyncLimit int
	// TransactionRetention is for how long the repetition of a request is recognised: 1h to 8760h.
	// Default: 24h.
	TransactionRetention time.Duration
	// MessageIDRetention is for how long a message that another server sends again is recognised: 168h
	// to 8760h. Default: 168h.
	MessageIDRetention time.Duration
	// MaxMessageBytes is the largest content for one device, as canonical JSON: 1 to 16 MiB. Default: 65536.
	MaxMessageBytes int
	// MaxRequestBytes is the largest body of one request: at least MaxMessageBytes, at most 1 GiB.
	// Default: 10 MiB.
	MaxRequestBytes int
	// RequestTimeout is how long a request waits for the database before it is answered with 503:
	// 100ms to 4m, since the host's HTTP server ends every response after 5 minutes. Default: 20s.
	RequestTimeout time.Duration
	// Limits bound what others can make the server keep or do.
	Limits LimitsConfig
	// TraceRecords is how many steps of messages are kept in memory to be asked for: 0 for none, to
	// 1,000,000. Default: 50000.
	TraceRecords int
	// Admin is for the command line alone, which asks a running server.
	Admin AdminConfig
	// Database is where the messages are kept. Default: the sync API's database.
	Database DatabaseConfig
}

// LimitsConfig is the section limits. Of the queues, 0 means that there is no limit, which is the default:
// nothing that was accepted is ever dropped then.
type LimitsConfig struct {
	// QueueMessages and QueueBytes are how many messages may wait for one device, and how large their contents may
	// be together; beyond that the oldest are dropped: at least 100 messages, and 1 MiB.
	QueueMessages, QueueBytes int
	// QueueAge is how long a message may wait for its device before it is dropped: at least 24h.
	QueueAge time.Duration
	// OriginEDUsPerSecond is how many EDUs are taken of one other server; beyond that it is answered 429, and sends
	// them again later. 0 means any number. Default: 0.
	OriginEDUsPerSecond int
	// OriginEDUsBurst is how many are taken at once: at least the 100 of one transaction. Default: 1000.
	OriginEDUsBurst int
	// KeyRequestsPerSecond is how many key requests of one device are taken for devices of other users; beyond
	// that they are dropped. 0 means any number. Default: 20.
	KeyRequestsPerSecond int
	// KeyRequestsBurst is how many are taken at once: at least 1. Default: 100.
	KeyRequestsBurst int
	// BodyBytes is how much of the bodies of requests is in memory at once, of clients and of other servers each: at least
	// 16 MiB. What finds no room within RequestTimeout is answered with 503. Default: 64 MiB.
	BodyBytes int
}

// AdminConfig is the section admin.
type AdminConfig struct {
	// URL is where the server's admin API is. Default: http://localhost:8008.
	URL string
	// AccessTokenFile has an administrator's access token in it. Default: none.
	AccessTokenFile string
}

// DatabaseConfig has the keys of every database section of dendrite.yaml. An empty
// ConnectionString means the sync API's database, with the sync API's settings.
type DatabaseConfig struct {
	ConnectionString string
	MaxOpenConns     int // Default: 90.
	MaxIdleConns     int // Default: 2.
	ConnMaxLifetime  int // Seconds; below 1 means for ever. Default: -1.
}

// DefaultConfig returns the configuration of a section without keys.
func DefaultConfig() Config {
	return Config{
		SyncLimit:            100,
		TransactionRetention: 24 * time.Hour,
		MessageIDRetention:   7 * 24 * time.Hour,
		MaxMessageBytes:      64 << 10,
		MaxRequestBytes:      10 << 20,
		RequestTimeout:       20 * time.Second,
		Limits:               LimitsConfig{OriginEDUsBurst: 1000, KeyRequestsPerSecond: 20, KeyRequestsBurst: 100, BodyBytes: 64 << 20},
		TraceRecords:         50_000,
		Admin:                AdminConfig{URL: "http://localhost:8008"},
		Database:             DatabaseConfig{MaxOpenConns: 90, MaxIdleConns: 2, ConnMaxLifetime: -1},
	}
}

// ParseConfig reads the to_device section of a whole dendrite.yaml. Without a section it returns
// the defaults, which are disabled. The error names every fault of the section at once, each by its
// full key; a section that is not enabled has none but those of enabled itself.
func ParseConfig(dendriteYAML []byte) (Config, error) {
	config := DefaultConfig()
	var document yaml.Node
	if err := yaml.Unmarshal(dendriteYAML, &document); err != nil {
		return config, fmt.Errorf("reading %s: %w", ConfigSection, err)
	}
	p := &configParser{}
	p.document(&document, config.keys())
	if !config.Enabled && !p.enabledIsFaulty {
		return config, nil
	}
	p.faults = append(p.faults, config.faults()...)
	return config, errors.Join(p.faults...)
}

// keys maps each key of the section to the field it sets, or to the keys of a section below it.
func (c *Config) keys() map[string]any {
	return map[string]any{
		"enabled":               &c.Enabled,
		"sync_limit":            &c.SyncLimit,
		"transaction_retention": &c.TransactionRetention,
		"message_id_retention":  &c.MessageIDRetention,
		"max_message_bytes":     &c.MaxMessageBytes,
		"max_request_bytes":     &c.MaxRequestBytes,
		"request_timeout":       &c.RequestTimeout,
		"trace_records":         &c.TraceRecords,
		"limits": map[string]any{
			"queue_messages":          &c.Limits.QueueMessages,
			"queue_bytes":             &c.Limits.QueueBytes,
			"queue_age":               &c.Limits.QueueAge,
			"origin_edus_per_second":  &c.Limits.OriginEDUsPerSecond,
			"origin_edus_burst":       &c.Limits.OriginEDUsBurst,
			"key_requests_per_second": &c.Limits.KeyRequestsPerSecond,
			"key_requests_burst":      &c.Limits.KeyRequestsBurst,
			"body_bytes":              &c.Limits.BodyBytes,
		},
		"admin": map[string]any{
			"url":               &c.Admin.URL,
			"access_token_file": &c.Admin.AccessTokenFile,
		},
		"database": map[string]any{
			"connection_string": &c.Database.ConnectionString,
			"max_open_conns":    &c.Database.MaxOpenConns,
			"max_idle_conns":    &c.Database.MaxIdleConns,
			"conn_max_lifetime": &c.Database.ConnMaxLifetime,
		},
	}
}

// faults checks the values against their bounds.
func (c *Config) faults() (faults []error) {
	within := func(key string, value, low, high any, ok bool) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s.%s: must be from %v to %v, but is %v", ConfigSection, key, low, high, value))
		}
	}
	between := func(key string, value, low, high int) { within(key, value, low, high, low <= value && value <= high) }
	lasts := func(key string, value, low, high time.Duration) {
		within(key, value, low, high, low <= value && value <= high)
	}
	between("sync_limit", c.SyncLimit, 1, 1000)
	lasts("transaction_retention", c.TransactionRetention, time.Hour, 365*24*time.Hour)
	lasts("message_id_retention", c.MessageIDRetention, 7*24*time.Hour, 365*24*time.Hour)
	const largestMessage = 16 << 20
	between("max_message_bytes", c.MaxMessageBytes, 1, largestMessage)
	between("max_request_bytes", c.MaxRequestBytes, max(1, min(c.MaxMessageBytes, largestMessage)), 1<<30)
	lasts("request_timeout", c.RequestTimeout, 100*time.Millisecond, 4*time.Minute)
	between("trace_records", c.TraceRecords, 0, 1_000_000)
	faults = append(faults, c.Limits.faults()...)
	if !isAdminURL(c.Admin.URL) {
		faults = append(faults, fmt.Errorf("%s.admin.url: must be like http://localhost:8008 or unix:///path, without a user or a query", ConfigSection))
	}
	if !isConnectionString(c.Database.ConnectionString) {
		faults = append(faults, fmt.Errorf("%s.database.connection_string: must be like postgresql://user:password@host/name, or file:name.db", ConfigSection)) // it has a password in it
	}
	if c.Database.MaxOpenConns == 1 {
		// One connection holds the lock that keeps a second server out.
		faults = append(faults, fmt.Errorf("%s.database.max_open_conns: must be 2 or more, or 0 for no limit, but is 1", ConfigSection))
	}
	return faults
}

// isAdminURL tells if a URL is one that the command line takes.
func isAdminURL(text string) bool {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return false
	case u.Scheme == "unix":
		return u.Host == "" && u.Path != ""
	default:
		return (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
	}
}

// isConnectionString tells if PostgreSQL's or SQLite's driver may take a connection string, or it is empty.
func isConnectionString(text string) bool {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return true
	case strings.HasPrefix(text, "file:"):
		return err == nil && u.Opaque+u.Path != ""
	case strings.HasPrefix(text, "postgres://"), strings.HasPrefix(text, "postgresql://"):
		return err == nil
	default: // host=localhost dbname=dendrite
		name, _, found := strings.Cut(text, "=")
		return found && !strings.Contains(name, ":")
	}
}

func (l *LimitsConfig) faults() (faults []error) {
	atLeast := func(key string, value, low any, ok bool) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s.limits.%s: must be 0 for no limit, or at least %v, but is %v", ConfigSection, key, low, value))
		}
	}
	orNone := func(key string, value, low int) { atLeast(key, value, low, value == 0 || value >= low) }
	const most = 1_000_000
	from := func(low int, key string, value int) {
		if value < low || value > most {
			faults = append(faults, fmt.Errorf("%s.limits.%s: must be from %d to %d, but is %d", ConfigSection, key, low, most, value))
		}
	}
	orNone("queue_messages", l.QueueMessages, 100)
	orNone("queue_bytes", l.QueueBytes, 1<<20)
	const shortestAge = 24 * time.Hour
	atLeast("queue_age", l.QueueAge, shortestAge, l.QueueAge == 0 || l.QueueAge >= shortestAge)
	from(0, "origin_edus_per_second", l.OriginEDUsPerSecond)
	from(100, "origin_edus_burst", l.OriginEDUsBurst)
	from(0, "key_requests_per_second", l.KeyRequestsPerSecond)
	from(1, "key_requests_burst", l.KeyRequestsBurst)
	if least, most := 16<<20, 1<<40; l.BodyBytes < least || l.BodyBytes > most {
		faults = append(faults, fmt.Errorf("%s.limits.body_bytes: must be from %d to %d, but is %d", ConfigSection, least, most, l.BodyBytes))
	}
	return faults
}
