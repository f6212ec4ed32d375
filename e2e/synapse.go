package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/matrix-org/dendrite/todevicemodule/hosttest/remote"
)

// envSynapse names the environment variable with the Python that has Synapse installed, instead of the
// one that `make synapse` installs it for.
const envSynapse = "TODEVICE_E2E_SYNAPSE"

// synapse is the Backend of a Synapse.
const synapse Backend = "synapse"

// SharedWithSynapse returns a server and a Synapse, which reach one another, for all tests that keep apart
// by their users. As with SharedServer, a test may kill and restart them.
func SharedWithSynapse(t testing.TB, b Backend) (here, there *Server) {
	t.Helper()
	return SharedFederated(t, b), sharedSynapse(t, b)
}

// StartSynapse starts a Synapse of the test's own, and ends it with the test.
func StartSynapse(t testing.TB) *Server {
	t.Helper()
	s, err := NewSynapse(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
		s.report(t, 0)
	})
	s.MustStart(t)
	return s
}

func sharedSynapse(t testing.TB, b Backend) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	key := sharedKey{synapse, string(b)}
	s := shared.servers[key]
	if s == nil {
		home, err := os.MkdirTemp(workDir, "synapse-")
		if err == nil {
			s, err = NewSynapse(home, Options{})
		}
		if err != nil {
			t.Fatal(err)
		}
		shared.servers[key] = s
	}
	logged := s.logSize()
	t.Cleanup(func() { s.report(t, logged) })
	if !s.running() {
		s.MustStart(t)
	}
	return s
}

// NewSynapse writes what a Synapse needs into a directory that outlives it; Start starts it. It keeps its data in the
// PostgreSQL database that the options name, or else in SQLite; of the other options it knows LogLevel.
func NewSynapse(home string, o Options) (*Server, error) {
	python, err := findSynapse()
	if err != nil {
		return nil, err
	}
	address, err := remote.FreeAddress()
	if err != nil {
		return nil, err
	}
	s := &Server{Backend: synapse, URL: "http://" + address, home: home, address: address, postgres: o.Postgres, ready: make(chan struct{})}
	if err = s.federate(""); err != nil {
		return nil, err
	}
	// It is launched with Dendrite's flags, and needs none of them.
	s.binary = s.path("synapse")
	launcher := fmt.Sprintf("#!/bin/sh\nexec '%s' -m synapse.app.homeserver --config-path homeserver.yaml\n", python)
	return s, errors.Join(os.WriteFile(s.binary, []byte(launcher), 0o700), s.writeSynapseConfig(o))
}

func findSynapse() (string, error) {
	python := os.Getenv(envSynapse)
	if python == "" {
		module, err := ModuleDir()
		if err != nil {
			return "", err
		}
		python = filepath.Join(module, "e2e", ".synapse", "bin", "python")
	}
	python, err := filepath.Abs(python)
	if err != nil {
		return "", err
	}
	if _, err = os.Stat(python); err != nil {
		return "", fmt.Errorf("no Synapse for the tests: run `make synapse`, or name a Python that has it installed in %s: %w", envSynapse, err)
	}
	return python, nil
}

// writeSynapseConfig writes the signing key and the configuration, as JSON.
func (s *Server) writeSynapseConfig(o Options) error {
	seed := make([]byte, 32)
	if _, err := rand.Read(seed); err != nil {
		return err
	}
	key := "ed25519 e2e " + base64.RawStdEncoding.EncodeToString(seed) + "\n"
	database, err := s.synapseDatabase()
	if err != nil {
		return err
	}
	unlimited := object{"per_second": 1e6, "burst_count": 1e6}
	var logConfig any // by default it logs with more words, such as where it failed
	if o.LogLevel != "" {
		logConfig = s.path("log.yaml")
	}
	return errors.Join(
		os.WriteFile(s.path("signing.key"), []byte(key), 0o600),
		writeJSON(s.path("log.yaml"), object{
			"version": 1, "handlers": object{"console": object{"class": "logging.StreamHandler"}},
			"root": object{"level": strings.ToUpper(o.LogLevel), "handlers": []string{"console"}},
		}),
		writeJSON(s.path("homeserver.yaml"), object{
			"server_name": s.name,
			"listeners": []object{
				synapseListener(s.address, false, "client"),
				synapseListener(s.tls[1], true, "federation", "keys"),
			},
			"tls_certificate_path": s.path("tls_cert.pem"),
			"tls_private_key_path": s.path("tls_key.pem"),
			"database":             database,
			"log_config":           logConfig,
			// Else a /sync that is asked again gets the answer that was kept.
			"caches":              object{"sync_response_cache_duration": 0},
			"signing_key_path":    s.path("signing.key"),
			"media_store_path":    s.path("media"),
			"macaroon_secret_key": "a secret of the tests",
			"form_secret":         "a secret of the tests",
			"bcrypt_rounds":       4,
			"report_stats":        false,
			"presence":            object{"enabled": false},
			"trusted_key_servers": []object{},

			"enable_registration":                      true,
			"enable_registration_without_verification": true,
			"rc_registration":                          unlimited,
			"rc_login":                                 object{"address": unlimited, "account": unlimited},
			"rc_key_requests":                          unlimited,
			"rc_federation": object{
				"window_size": 1000, "sleep_limit": 1000000, "sleep_delay": 0, "reject_limit": 1000000, "concurrent": 100,
			},

			// The other server is on this machine, under a certificate of its own making.
			"federation_verify_certificates": false,
			"ip_range_blacklist":             []string{},
			// By default Synapse leaves a server alone for ten minutes after a failure.
			"federation": object{
				"max_long_retry_delay":           "1s",
				"destination_min_retry_interval": "1s", "destination_max_retry_interval": "1s",
			},
		}),
	)
}

func (s *Server) synapseDatabase() (object, error) {
	if s.postgres == "" {
		return object{"name": "sqlite3", "args": object{"database": s.path("homeserver.db")}}, nil
	}
	u, err := url.Parse(s.postgres)
	if err != nil {
		return nil, err
	}
	args := object{"host": u.Hostname(), "port": u.Port(), "user": u.User.Username(), "dbname": u.Path[1:], "cp_min": 5, "cp_max": 10}
	if password, ok := u.User.Password(); ok {
		args["password"] = password
	}
	return object{"name": "psycopg2", "args": args}, nil
}

func synapseListener(address string, tls bool, resources ...string) object {
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.Atoi(port)
	return object{
		"type": "http", "bind_addresses": []string{host}, "port": number, "tls": tls,
		"resources": []object{{"names": resources}},
	}
}
