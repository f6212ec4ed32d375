package smallhost

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/matrix-org/util"
)

const (
	keyID       gomatrixserverlib.KeyID = "ed25519:small"
	keyLifetime                         = 24 * time.Hour
)

// publishKey answers with the host's own key, signed (server-server API, "Publishing Keys").
func (h *host) publishKey(http.ResponseWriter, *http.Request) util.JSONResponse {
	fields := gomatrixserverlib.ServerKeyFields{
		ServerName:    h.name,
		VerifyKeys:    map[gomatrixserverlib.KeyID]gomatrixserverlib.VerifyKey{keyID: {Key: h.publicKey()}},
		OldVerifyKeys: map[gomatrixserverlib.KeyID]gomatrixserverlib.OldVerifyKey{},
		ValidUntilTS:  spec.AsTimestamp(time.Now().Add(keyLifetime)),
	}
	text, err := json.Marshal(fields)
	if err == nil {
		text, err = gomatrixserverlib.SignJSON(string(h.name), keyID, h.accounts.now().Key, text)
	}
	if err != nil {
		h.log.WithError(err).Error("signing the key failed")
		return refuse(http.StatusInternalServerError, spec.ErrorUnknown, "The key can't be signed.")
	}
	return ok(json.RawMessage(text))
}

func (h *host) publicKey() spec.Base64Bytes {
	return spec.Base64Bytes(h.accounts.now().Key.Public().(ed25519.PublicKey))
}

// newKeyRing returns what checks the signatures of other servers, whose keys it asks them for.
func (h *host) newKeyRing() gomatrixserverlib.KeyRing {
	return gomatrixserverlib.KeyRing{
		KeyDatabase: &knownKeys{known: make(map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult)},
		KeyFetchers: []gomatrixserverlib.KeyFetcher{&gomatrixserverlib.DirectKeyFetcher{
			Client: h.federation, IsLocalServerName: h.isOwnName, LocalPublicKey: h.publicKey(),
		}},
	}
}

// knownKeys keeps the keys of other servers, in memory.
type knownKeys struct {
	mu    sync.Mutex
	known map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult
}

func (*knownKeys) FetcherName() string { return "knownKeys" }

func (k *knownKeys) FetchKeys(_ context.Context, wanted map[gomatrixserverlib.PublicKeyLookupRequest]spec.Timestamp) (map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found := make(map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult)
	for request := range wanted {
		if key, ok := k.known[request]; ok {
			found[request] = key
		}
	}
	return found, nil
}

func (k *knownKeys) StoreKeys(_ context.Context, keys map[gomatrixserverlib.PublicKeyLookupRequest]gomatrixserverlib.PublicKeyLookupResult) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.Copy(k.known, keys)
	return nil
}
