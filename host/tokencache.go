package host

import (
	"context"
	"crypto/sha256"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	userapi "github.com/matrix-org/dendrite/userapi/api"
)

const (
	// tokensKept bounds the cache: at some 500 bytes each it is about 8 MiB.
	tokensKept = 1 << 14
	// tokenLifetime is how long a token may still be taken whose device was deleted in the database itself, past the host, or by a
	// change that the database carried out after it had failed for the host.
	tokenLifetime = time.Minute
)

// tokenCache spares the two queries of each look-up of an access token (userapi/internal/user_api.go, QueryAccessToken). The host
// answers with the device that has the token, of which it reads no name and no time, and with the type of its account, which it never
// changes. So an answer holds until a device of the user is deleted, or created: that gives one that exists another token.
// Deactivation ends tokens by deleting devices, and so does a new password; of a deactivated account itself the host does not ask.
type tokenCache struct {
	// watch is devices.Directory.Watch.
	watch func() (ofUser func(userID string) (holds func() bool))
	known *lru.Cache[[sha256.Size]byte, knownToken]
}

type knownToken struct {
	device userapi.Device // without its access token
	holds  func() bool
	until  time.Time
}

func newTokenCache(watch func() func(userID string) func() bool) (*tokenCache, error) {
	known, err := lru.New[[sha256.Size]byte, knownToken](tokensKept)
	if err != nil {
		return nil, err
	}
	return &tokenCache{watch: watch, known: known}, nil
}

// rememberedTokens returns the host's look-up of access tokens, but that it remembers those that are good. It is for routes where the
// type of the account counts for nothing: administrators are made in the database itself.
func (d *Dendrite) rememberedTokens() userapi.QueryAcccessTokenAPI {
	return remembering{*d.userAPI.Load(), d.tokens}
}

type remembering struct {
	userapi.QueryAcccessTokenAPI
	cache *tokenCache
}

// QueryAccessToken asks the host for whatever is not surely as the host would answer it. Each answer is a device of the caller's own.
func (r remembering) QueryAccessToken(ctx context.Context, req *userapi.QueryAccessTokenRequest, res *userapi.QueryAccessTokenResponse) error {
	if req.AppServiceUserID != "" { // an application service's token may be any of its users
		return r.QueryAcccessTokenAPI.QueryAccessToken(ctx, req, res)
	}
	key := sha256.Sum256([]byte(req.AccessToken))
	begun := time.Now()
	if known, ok := r.cache.known.Get(key); ok && begun.Before(known.until) && known.holds() {
		device := known.device
		device.AccessToken = req.AccessToken
		res.Device = &device
		return nil
	}
	ofUser := r.cache.watch()
	if err := r.QueryAcccessTokenAPI.QueryAccessToken(ctx, req, res); err != nil {
		return err
	}
	if res.Device == nil || res.Err != "" {
		return nil
	}
	device := *res.Device
	device.AccessToken = ""
	r.cache.known.Add(key, knownToken{device: device, holds: ofUser(device.UserID), until: begun.Add(tokenLifetime)})
	return nil
}
