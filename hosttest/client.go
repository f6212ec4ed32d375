package hosttest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

const (
	password    = "a password for the checks"
	messageType = "org.example.check"
	clientV3    = "/_matrix/client/v3"
)

type object = map[string]any

// client is one device of one user, or nobody where it has no token.
type client struct {
	types.Device
	tr    *trial
	token string
}

// answer is what the homeserver said, whatever it was.
type answer struct {
	Status int
	Header http.Header
	Body   []byte
}

func (a answer) String() string { return fmt.Sprintf("%d %.300s", a.Status, a.Body) }

// errcode returns the spec's code of an error, or nothing.
func (a answer) errcode() string {
	var body struct {
		ErrCode string `json:"errcode"`
	}
	_ = json.Unmarshal(a.Body, &body)
	return body.ErrCode
}

// want returns an error unless the answer has the status.
func (a answer) want(status int, what string) error {
	if a.Status != status {
		return fmt.Errorf("%s: want %d, got %v", what, status, a)
	}
	return nil
}

// wantFault returns an error unless the answer says that the server is at fault.
func (a answer) wantFault(what string) error {
	if a.Status < http.StatusInternalServerError {
		return fmt.Errorf("%s: want a 5xx, got %v", what, a)
	}
	return nil
}

// do sends one request, of which the body is JSON unless it is made of bytes. The path is below /_matrix/client/v3 and percent-encoded, or a
// whole one. The error is that there is no answer.
func (c *client) do(ctx context.Context, method, path string, body any) (answer, error) {
	data, raw := body.([]byte)
	if !raw && body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return answer{}, err
		}
	}
	req, err := c.request(ctx, method, path, bytes.NewReader(data))
	if err != nil {
		return answer{}, err
	}
	return c.answerTo(req, c.tr.http.Transport)
}

// request returns a request that is not sent yet.
func (c *client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	server := c.tr.server()
	if server == nil {
		return nil, fmt.Errorf("%s %s: the homeserver does not run", method, path)
	}
	req, err := http.NewRequestWithContext(ctx, method, server.ClientURL+whole(path), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return req, nil
}

// answerTo sends a request once.
func (c *client) answerTo(req *http.Request, through http.RoundTripper) (answer, error) {
	res, err := through.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: the answer broke off: %w", req.Method, req.URL.Path, err)
	}
	return answer{Status: res.StatusCode, Header: res.Header, Body: text}, nil
}

func whole(path string) string {
	if len(path) > 1 && path[1] == '_' { // /_matrix
		return path
	}
	return clientV3 + path
}

// must sends a request that has to be granted, and reads the answer into the value, unless that is nil.
func (c *client) must(ctx context.Context, method, path string, body, into any) error {
	a, err := c.do(ctx, method, path, body)
	if err == nil {
		err = a.want(http.StatusOK, method+" "+path)
	}
	if err != nil || into == nil {
		return err
	}
	if err = json.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("%s %s: %w in %v", method, path, err, a)
	}
	return nil
}

// nobody returns a client without an account.
func (tr *trial) nobody() *client { return &client{tr: tr} }

// register makes a new user with one device. The name is made one that nobody has.
func (tr *trial) register(ctx context.Context, name, deviceID string) (*client, error) {
	return tr.newAccount(ctx, "/register", object{
		"username": tr.name(name), "password": password, "device_id": deviceID, "auth": object{"type": "m.login.dummy"},
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
	if err = json.Unmarshal(a.Body, &asked); err != nil {
		return a, nil //nolint:nilerr // whatever it is, it asks for no password
	}
	body["auth"] = object{
		"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": c.UserID}, "password": password, "session": asked.Session,
	}
	return c.do(ctx, method, path, body)
}

// messages has a content for each user and device.
type messages map[string]map[string]any

// to returns messages with the same content for each of the devices.
func to(content any, devices ...*client) messages {
	m := messages{}
	for _, d := range devices {
		m.add(d.UserID, d.DeviceID, content)
	}
	return m
}

// add adds a content for one more device.
func (m messages) add(userID, deviceID string, content any) messages {
	if m[userID] == nil {
		m[userID] = map[string]any{}
	}
	m[userID][deviceID] = content
	return m
}

// numbered is a content that tells messages apart.
func numbered(n int) object { return object{"n": n} }

func putPath(eventType, txnID string) string {
	return "/sendToDevice/" + url.PathEscape(eventType) + "/" + url.PathEscape(txnID)
}

// put sends messages under the transaction ID.
func (c *client) put(ctx context.Context, txnID string, m messages) (answer, error) {
	return c.do(ctx, http.MethodPut, putPath(messageType, txnID), object{"messages": m})
}

// send sends messages under a new transaction ID. They have to be accepted.
func (c *client) send(ctx context.Context, m messages) error {
	return c.sendAs(ctx, c.tr.name("txn"), m)
}

// sendAs sends messages under the transaction ID. They have to be accepted.
func (c *client) sendAs(ctx context.Context, txnID string, m messages) error {
	a, err := c.put(ctx, txnID, m)
	if err != nil {
		return fmt.Errorf("sending a message: %w", err)
	}
	return a.want(http.StatusOK, "sending a message")
}

// sendNumbered sends one message to the device for each of the numbers from first to before end.
func (c *client) sendNumbered(ctx context.Context, device *client, first, end int) error {
	for n := first; n < end; n++ {
		if err := c.send(ctx, to(numbered(n), device)); err != nil {
			return err
		}
	}
	return nil
}

// event is a message as it arrived.
type event struct {
	Sender  string          `json:"sender"`
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

// number returns the number of a content made by numbered, or -1.
func (e event) number() int {
	var content struct {
		N *int `json:"n"`
	}
	if err := json.Unmarshal(e.Content, &content); err != nil || content.N == nil {
		return -1
	}
	return *content.N
}

func numbersOf(events []event) []int {
	numbers := make([]int, 0, len(events))
	for _, e := range events {
		numbers = append(numbers, e.number())
	}
	return numbers
}

// wantNumbers returns an error unless the events are the messages from first to before end, in order.
func wantNumbers(what string, events []event, first, end int) error {
	var want []int
	for n := first; n < end; n++ {
		want = append(want, n)
	}
	if got := numbersOf(events); !slices.Equal(got, want) {
		return fmt.Errorf("%s: want the messages %v, got %v", what, want, got)
	}
	return nil
}

// response is the part of a /sync response that the checks look at.
type response struct {
	NextBatch string `json:"next_batch"`
	ToDevice  struct {
		Events []event `json:"events"`
	} `json:"to_device"`
	AccountData struct {
		Events []json.RawMessage `json:"events"`
	} `json:"account_data"`
	Presence struct {
		Events []json.RawMessage `json:"events"`
	} `json:"presence"`
	Rooms       map[string]map[string]json.RawMessage `json:"rooms"`
	DeviceLists struct {
		Changed []string `json:"changed"`
		Left    []string `json:"left"`
	} `json:"device_lists"`
}

func (r *response) events() []event { return r.ToDevice.Events }

// onlyOther tells whether the response has none of the messages, but something else. A new account has such news: a homeserver may
// announce its push rules and its device some time after the registration.
func (r *response) onlyOther() bool {
	other := len(r.AccountData.Events) + len(r.Presence.Events) + len(r.DeviceLists.Changed) + len(r.DeviceLists.Left)
	for _, rooms := range r.Rooms {
		other += len(rooms)
	}
	return len(r.events()) == 0 && other > 0
}

// trySync sends a /sync, without since if that is empty.
func (c *client) trySync(ctx context.Context, since string, timeout time.Duration) (answer, error) {
	query := url.Values{"timeout": {strconv.FormatInt(timeout.Milliseconds(), 10)}}
	if since != "" {
		query.Set("since", since)
	}
	return c.do(ctx, http.MethodGet, "/sync?"+query.Encode(), nil)
}

// sync sends a /sync that has to be granted.
func (c *client) sync(ctx context.Context, since string, timeout time.Duration) (*response, error) {
	a, err := c.trySync(ctx, since, timeout)
	if err != nil {
		return nil, fmt.Errorf("/sync: %w", err)
	}
	return a.syncResponse()
}

// syncResponse returns the response that the answer has to be.
func (a answer) syncResponse() (*response, error) {
	if err := a.want(http.StatusOK, "/sync"); err != nil {
		return nil, err
	}
	res := &response{}
	if err := json.Unmarshal(a.Body, res); err != nil {
		return nil, fmt.Errorf("/sync: %w in %v", err, a)
	}
	if res.NextBatch == "" {
		return nil, fmt.Errorf("/sync: no next_batch in %v", a)
	}
	return res, nil
}

// waiting returns what waits for the device, as a /sync without since shows it.
func (c *client) waiting(ctx context.Context) ([]event, error) {
	res, err := c.sync(ctx, "", 0)
	if err != nil {
		return nil, err
	}
	return res.events(), nil
}

// wantNothing returns an error if anything waits for the device.
func (c *client) wantNothing(ctx context.Context, what string) error {
	events, err := c.waiting(ctx)
	if err == nil && len(events) > 0 {
		err = fmt.Errorf("%s: want no messages, got %v", what, numbersOf(events))
	}
	return err
}

// caughtUp returns a token from which on a client that has nothing to be told waits.
func (c *client) caughtUp(ctx context.Context) (since string, err error) {
	err = c.tr.await(ctx, "/sync has nothing more to tell", func() (bool, any, error) {
		res, err := c.sync(ctx, since, 0)
		if err != nil {
			return false, nil, err
		}
		settled := since == res.NextBatch
		since = res.NextBatch
		return settled, since, nil
	})
	return since, err
}

// receive follows next_batch until it has n messages, or more. It returns them and the token to go on from.
func (c *client) receive(ctx context.Context, since string, n int) (events []event, next string, err error) {
	err = c.tr.await(ctx, fmt.Sprintf("%d messages arrive", n), func() (bool, any, error) {
		res, err := c.sync(ctx, since, 0)
		if err != nil {
			return false, nil, err
		}
		events, since = append(events, res.events()...), res.NextBatch
		return len(events) >= n, numbersOf(events), nil
	})
	return events, since, err
}
