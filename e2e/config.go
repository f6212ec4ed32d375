package e2e

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
)

// Options say how a server differs from the usual one.
type Options struct {
	// ToDevice is added to the to_device section, which is switched on unless it says otherwise.
	ToDevice map[string]any
	// NoSection leaves the to_device section out.
	NoSection bool
	// Postgres is the connection URL of the database to use, instead of a new one.
	Postgres string
	// DatabaseOf makes the server use the database of another one.
	DatabaseOf *Server
	// Federation gives the server a name that other servers reach it by, over TLS.
	Federation bool
	// Behind is the address that other servers reach it by, where something of the test's stands in front of it.
	Behind string
	// SendMaxRetries is after how many failures in a row the host gives up on another server. 0 leaves
	// the host's default.
	SendMaxRetries int
	// Host is what the server is compiled into, if not the host under test.
	Host Host
	// Announcements runs a server with the stream of examples/announcements in it.
	Announcements bool
	// Unmodified runs Dendrite as it is, without the module compiled in.
	Unmodified bool
	// NATS is the URL of a nats-server to use, instead of the one within the process.
	NATS string
	// LogLevel is the least that the server logs. Default: info.
	LogLevel string
	// MaxIdleConns is how many connections to PostgreSQL the server keeps open. Default: 30.
	MaxIdleConns int
	// Env is added to the environment of the process, as key=value.
	Env []string
}

const (
	serverName = "localhost"

	// MaxOpenConns is how many connections to PostgreSQL a server opens at most.
	MaxOpenConns = 60

	// The application service every server knows. Its users are @asuser_*.
	appServiceToken  = "as_token_of_the_tests"
	appServicePrefix = "asuser_"

	// registrationSecret lets tests make administrators.
	registrationSecret = "registration secret of the tests"

	// What the tests of limits count on. Small, so that passing them costs little.
	maxMessageBytes = 65536
	maxRequestBytes = 1 << 20
)

type object = map[string]any

// writeConfig writes the dendrite.yaml of a server, its signing key and an application service.
// The configuration is JSON, which YAML is a superset of.
func (s *Server) writeConfig(o Options) error {
	seed := make([]byte, 32)
	if _, err := rand.Read(seed); err != nil {
		return err
	}
	key := pem.EncodeToMemory(&pem.Block{
		Type:    "MATRIX PRIVATE KEY",
		Headers: map[string]string{"Key-ID": "ed25519:e2e"},
		Bytes:   seed,
	})
	appService := object{
		"id": "e2e", "url": "", "as_token": appServiceToken,
		"hs_token": base64.RawURLEncoding.EncodeToString(seed[:16]), "sender_localpart": appServicePrefix + "bot",
		"namespaces": object{
			"users":   []object{{"exclusive": true, "regex": "@" + appServicePrefix + ".*"}},
			"aliases": []object{}, "rooms": []object{},
		},
	}
	if err := os.WriteFile(s.path("matrix_key.pem"), key, 0o600); err != nil {
		return err
	}
	if err := writeJSON(s.path("appservice.yaml"), appService); err != nil {
		return err
	}
	return writeJSON(s.path("dendrite.yaml"), s.config(o))
}

func (s *Server) config(o Options) object {
	cfg := object{
		"version": 2,
		"global": object{
			"server_name": s.name,
			"private_key": s.path("matrix_key.pem"),
			"key_id":      "ed25519:e2e",
			"database":    object{},
			// On disk: a restart must find again what was in the streams.
			"jetstream":                      object{"storage_path": s.path("jetstream"), "in_memory": false},
			"presence":                       object{"enable_inbound": false, "enable_outbound": false},
			"trusted_third_party_id_servers": []string{},
		},
		"app_service_api": object{"config_files": []string{s.path("appservice.yaml")}},
		"client_api": object{
			"registration_disabled":      false,
			"guests_disabled":            false,
			"registration_shared_secret": registrationSecret,
			"rate_limiting":              object{"enabled": false},
		},
		"federation_api": object{
			"key_perspectives": []object{}, "disable_tls_validation": true,
			// Other servers of the tests are on this machine, which newer versions of Dendrite leave alone otherwise.
			"allow_networks": []string{}, "deny_networks": []string{},
		},
		"media_api": object{"base_path": s.path("media")},
		"sync_api":  object{"search": object{"enabled": false}},
		"user_api":  object{"bcrypt_cost": 4},
		"logging":   []object{{"type": "std", "level": cmp.Or(o.LogLevel, "info")}},
	}
	for component, section := range map[string]string{
		"federationapi": "federation_api", "keyserver": "key_server", "mscs": "mscs", "mediaapi": "media_api",
		"roomserver": "room_server", "syncapi": "sync_api", "relayapi": "relay_api", "userapi": "user_api",
	} {
		if s.Backend == Postgres {
			break
		}
		key := "database"
		if section == "user_api" {
			key = "account_database"
		}
		if cfg[section] == nil {
			cfg[section] = object{}
		}
		cfg[section].(object)[key] = object{"connection_string": "file:" + s.sqliteFile(component)}
	}
	if s.Backend == Postgres {
		cfg["global"].(object)["database"] = object{
			"connection_string": s.postgres, "max_open_conns": MaxOpenConns, "max_idle_conns": cmp.Or(o.MaxIdleConns, 30), "conn_max_lifetime": -1,
		}
	}
	if o.NATS != "" {
		cfg["global"].(object)["jetstream"] = object{"addresses": []string{o.NATS}}
	}
	if o.SendMaxRetries > 0 {
		cfg["federation_api"].(object)["send_max_retries"] = o.SendMaxRetries
	}
	if !o.NoSection && !o.Unmodified {
		section := object{"enabled": true, "max_message_bytes": maxMessageBytes, "max_request_bytes": maxRequestBytes}
		maps.Copy(section, o.ToDevice)
		cfg["to_device"] = section
	}
	return cfg
}

func (s *Server) path(name string) string { return filepath.Join(s.home, name) }

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
