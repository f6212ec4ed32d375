package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/matrix-org/dendrite/setup/config"
	"gopkg.in/yaml.v2"
)

// site is the directory of a quickstart server.
type site struct {
	dir    string
	secret string // for registering users, and as their password
}

func (s *site) logFile() string { return filepath.Join(s.dir, "server.log") }

// prepareSite writes what is missing in the directory; what is there stays as it is.
func prepareSite(dir string) (*site, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &site{dir: dir}
	secretFile := filepath.Join(dir, "secret")
	if err = createFile(secretFile, func() ([]byte, error) { return []byte(hex.EncodeToString(randomBytes(24))), nil }); err != nil {
		return nil, err
	}
	secret, err := os.ReadFile(secretFile)
	if err != nil {
		return nil, err
	}
	s.secret = string(secret)
	if err = createFile(filepath.Join(dir, "matrix_key.pem"), newSigningKey); err != nil {
		return nil, err
	}
	return s, createFile(filepath.Join(dir, "dendrite.yaml"), s.newConfig)
}

// createFile leaves a file alone that exists.
func createFile(name string, content func() ([]byte, error)) error {
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data, err := content()
	if err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// newSigningKey has the format of Dendrite's generate-keys.
func newSigningKey() ([]byte, error) {
	return pem.EncodeToMemory(&pem.Block{
		Type:    "MATRIX PRIVATE KEY",
		Headers: map[string]string{"Key-ID": "ed25519:" + hex.EncodeToString(randomBytes(3))},
		Bytes:   randomBytes(ed25519.SeedSize),
	}), nil
}

// newConfig is what Dendrite's generate-config writes for SQLite, with the module switched on.
func (s *site) newConfig() ([]byte, error) {
	cfg := &config.Dendrite{Version: config.Version}
	cfg.Defaults(config.DefaultOpts{Generate: true, SingleDatabase: true})
	cfg.Global.ServerName = "localhost"
	cfg.Global.PrivateKeyPath = config.Path(filepath.Join(s.dir, "matrix_key.pem"))
	cfg.Global.DisableFederation = true
	cfg.Global.JetStream.StoragePath = config.Path(filepath.Join(s.dir, "jetstream"))
	cfg.MediaAPI.BasePath = config.Path(filepath.Join(s.dir, "media"))
	cfg.SyncAPI.Fulltext.IndexPath = config.Path(filepath.Join(s.dir, "searchindex"))
	cfg.ClientAPI.RegistrationSharedSecret = s.secret
	cfg.FederationAPI.KeyPerspectives = nil
	cfg.Logging = nil
	for name, db := range map[string]*config.DatabaseOptions{
		"federationapi": &cfg.FederationAPI.Database,
		"keyserver":     &cfg.KeyServer.Database,
		"mscs":          &cfg.MSCs.Database,
		"mediaapi":      &cfg.MediaAPI.Database,
		"roomserver":    &cfg.RoomServer.Database,
		"syncapi":       &cfg.SyncAPI.Database,
		"userapi":       &cfg.UserAPI.AccountDatabase,
		"relayapi":      &cfg.RelayAPI.Database,
	} {
		db.ConnectionString = config.DataSource("file://" + filepath.Join(s.dir, fmt.Sprintf("dendrite_%s.db", name)))
	}
	host, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	return append(host, "\nto_device:\n  enabled: true\n"...), nil
}
