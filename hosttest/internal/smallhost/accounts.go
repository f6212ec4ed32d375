package smallhost

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// accounts are the users with their devices, and the key of the server, in a file.
type accounts struct {
	path string

	mu    sync.Mutex
	state state // never changed in its place
}

type state struct {
	Key   ed25519.PrivateKey
	Users map[string]*user // by user ID
}

type user struct {
	Password    string
	Guest       bool
	Deactivated bool
	Devices     map[string]string // access tokens by device ID
}

func openAccounts(path string) (*accounts, error) {
	a := &accounts{path: path}
	text, err := os.ReadFile(path)
	if err == nil {
		return a, json.Unmarshal(text, &a.state)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return a, a.change(func(s *state) (err error) {
		s.Users = make(map[string]*user)
		_, s.Key, err = ed25519.GenerateKey(rand.Reader)
		return err
	})
}

// change has f change the state. What f leaves behind is in the file when change returns nil; otherwise nothing has changed.
func (a *accounts) change(f func(*state) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, err := json.Marshal(a.state)
	if err != nil {
		return err
	}
	var next state
	if err = json.Unmarshal(text, &next); err != nil {
		return err
	}
	if err = f(&next); err != nil {
		return err
	}
	if text, err = json.Marshal(next); err != nil {
		return err
	}
	if err = os.WriteFile(a.path+".new", text, 0o600); err != nil {
		return err
	}
	if err = os.Rename(a.path+".new", a.path); err != nil {
		return err
	}
	a.state = next
	return nil
}

// now returns the state, which is not to be changed.
func (a *accounts) now() state {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

// authenticate returns the device that has the access token.
func (a *accounts) authenticate(token string) (types.Device, bool) {
	for userID, u := range a.now().Users {
		for deviceID, own := range u.Devices {
			if own == token {
				return types.Device{UserID: userID, DeviceID: deviceID}, true
			}
		}
	}
	return types.Device{}, false
}

// devices returns the IDs of a user's devices. An unknown user has none.
func (a *accounts) devices(userID string) []string {
	u := a.now().Users[userID]
	if u == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(u.Devices))
}

// owners returns a user for each of the devices that exists.
func (a *accounts) owners(deviceIDs []string) map[string]string {
	owners := make(map[string]string)
	for userID, u := range a.now().Users {
		for _, deviceID := range deviceIDs {
			if _, exists := u.Devices[deviceID]; exists {
				owners[deviceID] = userID
			}
		}
	}
	return owners
}
