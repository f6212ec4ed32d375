package hosttest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// nobody returns a client without an account.
func (tr *trial) nobody() *client { return &client{tr: tr} }

// register makes a new user with one device. The name is made one that nobody has.
func (tr *trial) register(ctx context.Context, name, deviceID string) (*client, error) {
	return tr.registerAs(ctx, tr.name(name), deviceID)
}

// registerAs makes a new user of that name with one device.
func (tr *trial) registerAs(ctx context.Context, name, deviceID string) (*client, error) {
	return tr.newAccount(ctx, "/register", object{
		"username": name, "password": password, "device_id": deviceID, "auth": object{"type": "m.login.dummy"},
	})
}

// registerEach makes a new user with one device for each of the names.
func (tr *trial) registerEach(ctx context.Context, names ...string) ([]*client, error) {
	clients := make([]*client, 0, len(names))
	for _, name := range names {
		c, err := tr.register(ctx, name, "FIRST")
		if err != nil {
			return nil, err
		}
		clients = append(clients, c)
	}
	return clients, nil
}

// pair makes two new users with one device each.
func (tr *trial) pair(ctx context.Context) (alice, bob *client, err error) {
	both, err := tr.registerEach(ctx, "alice", "bob")
	if err != nil {
		return nil, nil, err
	}
	return both[0], both[1], nil
}

// pairCaughtUp makes a pair, and returns a since token of bob's behind which nothing is.
func (tr *trial) pairCaughtUp(ctx context.Context) (alice, bob *client, since string, err error) {
	if alice, bob, err = tr.pair(ctx); err != nil {
		return nil, nil, "", err
	}
	since, err = bob.caughtUp(ctx)
	return alice, bob, since, err
}

func (tr *trial) newAccount(ctx context.Context, path string, body object) (*client, error) {
	c := tr.nobody()
	if err := c.signIn(ctx, path, body); err != nil {
		return nil, fmt.Errorf("registering: %w", err)
	}
	return c, nil
}

// signIn sends a request that is answered with an access token.
func (c *client) signIn(ctx context.Context, path string, body object) error {
	var res struct {
		UserID      string `json:"user_id"`
		DeviceID    string `json:"device_id"`
		AccessToken string `json:"access_token"`
	}
	if err := c.must(ctx, http.MethodPost, path, body, &res); err != nil {
		return err
	}
	c.UserID, c.DeviceID, c.token = res.UserID, res.DeviceID, res.AccessToken
	return nil
}

// login signs a device of the same user in: a new one, or one that is there with a new token.
func (c *client) login(ctx context.Context, deviceID string) (*client, error) {
	n := c.tr.nobody()
	if err := n.signIn(ctx, "/login", c.loginBody(deviceID)); err != nil {
		return nil, fmt.Errorf("signing %s in as %s: %w", c.UserID, deviceID, err)
	}
	return n, nil
}

func (c *client) loginBody(deviceID string) object {
	return object{
		"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": c.UserID}, "password": password, "device_id": deviceID,
	}
}

// withPassword sends a request that may ask for the user's password (client-server API, "User-interactive authentication").
func (c *client) withPassword(ctx context.Context, method, path string, body object) (answer, error) {
	a, err := c.do(ctx, method, path, body)
	if err != nil || a.Status != http.StatusUnauthorized {
		return a, err
	}
	var asked struct {
		Session string `json:"session"`
	}
	if json.Unmarshal(a.Body, &asked) != nil {
		return a, nil // whatever it is, it asks for no password
	}
	body["auth"] = object{
		"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": c.UserID}, "password": password, "session": asked.Session,
	}
	return c.do(ctx, method, path, body)
}
