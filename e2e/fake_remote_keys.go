package e2e

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// knownKeys checks signatures with the keys of servers that were asked for them once, so that a
// server which is down can't make a good signature fail.
type knownKeys struct {
	keys map[spec.ServerName]gomatrixserverlib.ServerKeys
}

func (k *knownKeys) learn(t testing.TB, client fclient.FederationClient, s *Server) {
	t.Helper()
	keys, err := client.GetServerKeys(t.Context(), spec.ServerName(s.name))
	if err != nil {
		t.Fatal(err)
	}
	if checks, _ := gomatrixserverlib.CheckKeys(spec.ServerName(s.name), time.Now(), keys); !checks.AllChecksOK {
		t.Fatalf("the keys of %s are not good: %+v", s.name, checks)
	}
	if k.keys == nil {
		k.keys = map[spec.ServerName]gomatrixserverlib.ServerKeys{}
	}
	k.keys[spec.ServerName(s.name)] = keys
}

// VerifyJSONs implements gomatrixserverlib.JSONVerifier.
func (k *knownKeys) VerifyJSONs(_ context.Context, requests []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	results := make([]gomatrixserverlib.VerifyJSONResult, len(requests))
	for i, request := range requests {
		results[i].Error = k.verify(request)
	}
	return results, nil
}

func (k *knownKeys) verify(request gomatrixserverlib.VerifyJSONRequest) error {
	ids, err := gomatrixserverlib.ListKeyIDs(string(request.ServerName), request.Message)
	if err != nil {
		return err
	}
	err = fmt.Errorf("%s signed with no key that it publishes", request.ServerName)
	for _, keyID := range ids {
		public := k.keys[request.ServerName].PublicKey(keyID, request.AtTS)
		if len(public) != ed25519.PublicKeySize {
			continue
		}
		if err = gomatrixserverlib.VerifyJSON(string(request.ServerName), keyID, public, request.Message); err == nil {
			return nil
		}
	}
	return err
}
