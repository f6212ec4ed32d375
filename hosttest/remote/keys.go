package remote

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// Publish changes what the server says of its key to whoever asks from now on.
func (s *Server) Publish(change func(*gomatrixserverlib.ServerKeyFields)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publish = change
}

// servePublicKeys answers with the signed document with the server's key.
func (s *Server) servePublicKeys(w http.ResponseWriter, _ *http.Request) {
	fields := gomatrixserverlib.ServerKeyFields{
		ServerName:    spec.ServerName(s.Name),
		VerifyKeys:    map[gomatrixserverlib.KeyID]gomatrixserverlib.VerifyKey{s.keyID: {Key: spec.Base64Bytes(s.key.Public().(ed25519.PublicKey))}},
		ValidUntilTS:  spec.AsTimestamp(time.Now().Add(24 * time.Hour)),
		OldVerifyKeys: map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey{},
	}
	s.mu.Lock()
	change := s.publish
	s.mu.Unlock()
	if change != nil {
		change(&fields)
	}
	document, err := json.Marshal(fields)
	if err == nil {
		document, err = gomatrixserverlib.SignJSON(s.Name, s.keyID, s.key, document)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeAnswer(w, http.StatusOK, json.RawMessage(document))
}

// Learn asks a server for its signing keys, once: transactions that it signs with them are taken from then on, even while it is down.
func (s *Server) Learn(ctx context.Context, serverName string) error {
	name := spec.ServerName(serverName)
	keys, err := s.Client.GetServerKeys(ctx, name)
	if err != nil {
		return fmt.Errorf("asking %s for its keys: %w", serverName, err)
	}
	if checks, _ := gomatrixserverlib.CheckKeys(name, time.Now(), keys); !checks.AllChecksOK {
		return fmt.Errorf("the keys of %s are not good: %+v", serverName, checks)
	}
	s.verifier.add(name, keys)
	return nil
}

// verifier checks signatures with the keys of servers that were asked for them once, so that a
// server which is down can't make a good signature fail.
type verifier struct {
	mu   sync.Mutex
	keys map[spec.ServerName]gomatrixserverlib.ServerKeys
}

func (v *verifier) add(name spec.ServerName, keys gomatrixserverlib.ServerKeys) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys == nil {
		v.keys = make(map[spec.ServerName]gomatrixserverlib.ServerKeys)
	}
	v.keys[name] = keys
}

// VerifyJSONs implements gomatrixserverlib.JSONVerifier.
func (v *verifier) VerifyJSONs(_ context.Context, requests []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	results := make([]gomatrixserverlib.VerifyJSONResult, len(requests))
	for i, request := range requests {
		results[i].Error = v.verify(request)
	}
	return results, nil
}

func (v *verifier) verify(request gomatrixserverlib.VerifyJSONRequest) error {
	v.mu.Lock()
	keys := v.keys[request.ServerName]
	v.mu.Unlock()
	ids, err := gomatrixserverlib.ListKeyIDs(string(request.ServerName), request.Message)
	if err != nil {
		return err
	}
	err = fmt.Errorf("%s signed with no key that it publishes", request.ServerName)
	for _, keyID := range ids {
		public := keys.PublicKey(keyID, request.AtTS)
		if len(public) != ed25519.PublicKeySize {
			continue
		}
		if err = gomatrixserverlib.VerifyJSON(string(request.ServerName), keyID, public, request.Message); err == nil {
			return nil
		}
	}
	return err
}
