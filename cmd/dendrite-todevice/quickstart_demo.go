package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// demonstration sends a message from one user's device to another's over the client-server API.
type demonstration struct {
	base string
	site *site
}

type session struct {
	UserID   string `json:"user_id"`
	DeviceID string `json:"device_id"`
	Token    string `json:"access_token"`
}

type syncResponse struct {
	NextBatch string `json:"next_batch"`
	ToDevice  struct {
		Events []json.RawMessage `json:"events"`
	} `json:"to_device"`
}

func (d *demonstration) waitUntilUp(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := d.call(ctx, http.MethodGet, "/_matrix/client/versions", "", nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return errors.New("the server stopped at start")
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (d *demonstration) run(ctx context.Context) error {
	alice, err := d.signIn(ctx, "alice", "ALICEPHONE")
	if err != nil {
		return fmt.Errorf("signing in alice: %w", err)
	}
	bob, err := d.signIn(ctx, "bob", "BOBLAPTOP")
	if err != nil {
		return fmt.Errorf("signing in bob: %w", err)
	}
	fmt.Printf("1. Registered %s with device %s and %s with device %s.\n", alice.UserID, alice.DeviceID, bob.UserID, bob.DeviceID)

	before, err := d.syncUntilEmpty(ctx, bob)
	if err != nil {
		return fmt.Errorf("bob's first /sync: %w", err)
	}
	path := "/_matrix/client/v3/sendToDevice/org.example.greeting/" + hex.EncodeToString(randomBytes(8))
	content := map[string]any{"text": "Hello Bob"}
	body := map[string]any{"messages": map[string]any{bob.UserID: map[string]any{bob.DeviceID: content}}}
	for range 2 {
		if err = d.call(ctx, http.MethodPut, path, alice.Token, body, nil); err != nil {
			return fmt.Errorf("sending the message: %w", err)
		}
	}
	fmt.Println("2. Alice sent a message to Bob's device, twice with the same transaction ID.")

	arrived, err := d.sync(ctx, bob, before)
	if err != nil {
		return fmt.Errorf("bob's /sync: %w", err)
	}
	if len(arrived.ToDevice.Events) != 1 {
		return fmt.Errorf("bob's /sync brought %d messages instead of one", len(arrived.ToDevice.Events))
	}
	fmt.Printf("3. It arrived once:\n   %s\n", arrived.ToDevice.Events[0])

	after, err := d.sync(ctx, bob, arrived.NextBatch)
	if err != nil {
		return fmt.Errorf("bob's next /sync: %w", err)
	}
	if len(after.ToDevice.Events) != 0 {
		return errors.New("the message came again after it was acknowledged")
	}
	again, err := d.sync(ctx, bob, before)
	if err != nil {
		return fmt.Errorf("bob's /sync with an old token: %w", err)
	}
	if len(again.ToDevice.Events) != 0 {
		return errors.New("the message was not deleted after it was acknowledged")
	}
	fmt.Print("4. Bob's next /sync acknowledged it: it is deleted.\n\n")
	d.printCurl(alice, bob, after.NextBatch)
	return nil
}

// syncUntilEmpty leaves behind what an earlier run left in the queue.
func (d *demonstration) syncUntilEmpty(ctx context.Context, s session) (nextBatch string, err error) {
	for {
		res, err := d.sync(ctx, s, nextBatch)
		if err != nil {
			return "", err
		}
		if nextBatch = res.NextBatch; len(res.ToDevice.Events) == 0 {
			return nextBatch, nil
		}
	}
}

func (d *demonstration) sync(ctx context.Context, s session, since string) (res syncResponse, err error) {
	query := url.Values{"timeout": {"0"}}
	if since != "" {
		query.Set("since", since)
	}
	err = d.call(ctx, http.MethodGet, "/_matrix/client/v3/sync?"+query.Encode(), s.Token, nil, &res)
	return res, err
}

// signIn registers the user unless an earlier run did, and signs in its one device.
func (d *demonstration) signIn(ctx context.Context, name, deviceID string) (s session, err error) {
	var nonce struct {
		Nonce string `json:"nonce"`
	}
	if err = d.call(ctx, http.MethodGet, "/_synapse/admin/v1/register", "", nil, &nonce); err != nil {
		return s, err
	}
	mac := hmac.New(sha1.New, []byte(d.site.secret)) // the registration API asks for SHA-1
	_, _ = fmt.Fprintf(mac, "%s\x00%s\x00%s\x00notadmin", nonce.Nonce, name, d.site.secret)
	err = d.call(ctx, http.MethodPost, "/_synapse/admin/v1/register", "", map[string]any{
		"username": name, "password": d.site.secret, "nonce": nonce.Nonce, "mac": hex.EncodeToString(mac.Sum(nil)),
	}, nil)
	var refused *apiError
	if err != nil && (!errors.As(err, &refused) || refused.Code != "M_USER_IN_USE") {
		return s, err
	}
	err = d.call(ctx, http.MethodPost, "/_matrix/client/v3/login", "", map[string]any{
		"type":       "m.login.password",
		"identifier": map[string]any{"type": "m.id.user", "user": name},
		"password":   d.site.secret,
		"device_id":  deviceID,
	}, &s)
	return s, err
}

func (d *demonstration) printCurl(alice, bob session, since string) {
	fmt.Printf(`To do the same by hand, send from Alice to Bob (a new transaction ID, here "my-1", for each message):

  curl -X PUT -H 'Authorization: Bearer %s' \
    -d '{"messages":{"%s":{"%s":{"text":"Hello again"}}}}' \
    '%s/_matrix/client/v3/sendToDevice/org.example.greeting/my-1'

and receive as Bob; the since token acknowledges what came before it, so take next_batch from each
response for the next request:

  curl -H 'Authorization: Bearer %s' \
    '%s/_matrix/client/v3/sync?timeout=30000&since=%s'

`, alice.Token, bob.UserID, bob.DeviceID, d.base, bob.Token, d.base, since)
}

// apiError is an answer other than 200.
type apiError struct {
	Status  int
	Code    string `json:"errcode"`
	Message string `json:"error"`
}

func (e *apiError) Error() string {
	return fmt.Sprintf("HTTP %d %s: %s", e.Status, e.Code, e.Message)
}

func (d *demonstration) call(ctx context.Context, method, path, token string, body, into any) error {
	payload, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, d.base+path, bytes.NewReader(payload))
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck
	answer, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		refused := &apiError{Status: res.StatusCode}
		_ = json.Unmarshal(answer, refused) // without JSON the status says enough
		return refused
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}
