package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

const (
	password = "a password for the tests"

	// longPoll is the timeout of a /sync that is expected to return before it, shortPoll that of
	// one that is expected to wait for all of it.
	longPoll  = 20 * time.Second
	shortPoll = 1500 * time.Millisecond
)

var (
	runID   = rand.Uint32() // keeps the names of test runs apart
	counter atomic.Int64
)

// unique returns a name that no other test uses, good as a localpart and as a transaction ID.
func unique(prefix string) string {
	return fmt.Sprintf("%s_%x_%d", prefix, runID, counter.Add(1))
}

// Client is one device of one user.
type Client struct {
	*mautrix.Client
	server *Server
}

// newClient returns a client without an account.
func newClient(t testing.TB, s *Server) *Client {
	t.Helper()
	cli, err := mautrix.NewClient(s.URL, "", "")
	if err != nil {
		t.Fatal(err)
	}
	cli.Client = &http.Client{Transport: transport}
	return &Client{cli, s}
}

// Register makes a new user with one device.
func Register(t testing.TB, s *Server, name string) *Client {
	t.Helper()
	c := newClient(t, s)
	res, _, err := c.Register(t.Context(), &mautrix.ReqRegister{
		Username: unique(name), Password: password, DeviceID: "FIRST",
		Auth: mautrix.BaseAuthData{Type: mautrix.AuthTypeDummy},
	})
	if err != nil || res == nil {
		t.Fatalf("registering: %v", err)
	}
	return c.as(res.UserID, res.DeviceID, res.AccessToken)
}

// RegisterGuest makes a guest, who has one device.
func RegisterGuest(t testing.TB, s *Server) *Client {
	t.Helper()
	c := newClient(t, s)
	res, _, err := c.RegisterGuest(t.Context(), &mautrix.ReqRegister{})
	if err != nil || res == nil {
		t.Fatalf("registering a guest: %v", err)
	}
	return c.as(res.UserID, res.DeviceID, res.AccessToken)
}

// RegisterAppServiceUser makes a user of the application service.
func RegisterAppServiceUser(t testing.TB, s *Server) *Client {
	t.Helper()
	c := newClient(t, s)
	c.AccessToken = appServiceToken
	res, _, err := c.Register(t.Context(), &mautrix.ReqRegister{
		Username: unique(appServicePrefix), Type: mautrix.AuthTypeAppservice, InhibitLogin: true,
	})
	if err != nil || res == nil {
		t.Fatalf("registering a user of the application service: %v", err)
	}
	c.SetAppServiceUserID = true
	return c.as(res.UserID, "", appServiceToken)
}

func (c *Client) as(user id.UserID, device id.DeviceID, token string) *Client {
	c.UserID, c.DeviceID, c.AccessToken = user, device, token
	return c
}

// Login logs a device of the same user in: a new one, or the same one with a new token.
func (c *Client) Login(t testing.TB, s *Server, device id.DeviceID) *Client {
	t.Helper()
	n := newClient(t, s)
	res, err := n.Client.Login(t.Context(), &mautrix.ReqLogin{
		Type:       mautrix.AuthTypePassword,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: c.UserID.String()},
		Password:   password, DeviceID: device,
	})
	if err != nil {
		t.Fatalf("logging %s %s in: %v", c.UserID, device, err)
	}
	return n.as(res.UserID, res.DeviceID, res.AccessToken)
}

// Answer is what the server said, whatever it was.
type Answer struct {
	Status  int
	ErrCode string
	Message string
	Body    []byte
	Err     error // set if there was no answer
}

func (a Answer) String() string {
	if a.Err != nil {
		return "no answer: " + a.Err.Error()
	}
	return fmt.Sprintf("%d %s", a.Status, a.Body)
}

// do sends one request, once, through mautrix.
func (c *Client) do(ctx context.Context, method, url string, body []byte) Answer {
	request := mautrix.FullRequest{
		Method: method, URL: url, RequestBytes: body, MaxAttempts: 1,
		Headers: http.Header{"Content-Type": {"application/json"}},
	}
	data, res, err := c.MakeFullRequestWithResp(ctx, request) //nolint:bodyclose // mautrix closes it
	if res == nil {
		return Answer{Err: err}
	}
	a := Answer{Status: res.StatusCode, Body: data}
	var httpErr mautrix.HTTPError
	switch {
	case err == nil:
	case errors.As(err, &httpErr) && httpErr.WrappedError == nil:
		if httpErr.RespError != nil {
			a.ErrCode, a.Message = httpErr.RespError.ErrCode, httpErr.RespError.Err
		}
	default: // the connection broke within the answer
		return Answer{Err: err}
	}
	return a
}

// PutURL is where a message is sent to. The event type and the transaction ID are
// percent-encoded.
func (c *Client) PutURL(version, eventType, txnID string) string {
	return c.BuildClientURL(version, "sendToDevice", eventType, txnID)
}

// Put sends the body as it is.
func (c *Client) Put(ctx context.Context, eventType, txnID string, body []byte) Answer {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	return c.do(ctx, http.MethodPut, c.PutURL("v3", eventType, txnID), body)
}

// Messages holds a content for each user and device.
type Messages map[id.UserID]map[id.DeviceID]any

// To returns messages with the same content for each of the devices.
func To(content any, devices ...*Client) Messages {
	m := Messages{}
	for _, d := range devices {
		if m[d.UserID] == nil {
			m[d.UserID] = map[id.DeviceID]any{}
		}
		m[d.UserID][d.DeviceID] = content
	}
	return m
}

// Body returns the body of the request that sends the messages.
func (m Messages) Body() []byte { return mustJSON(object{"messages": m}) }

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// Send sends messages under a new transaction ID, and fails the test unless they are accepted.
func (c *Client) Send(t testing.TB, eventType string, m Messages) {
	t.Helper()
	c.SendTxn(t, eventType, unique("txn"), m)
}

// SendTxn sends messages under the transaction ID given.
func (c *Client) SendTxn(t testing.TB, eventType, txnID string, m Messages) {
	t.Helper()
	if a := c.Put(t.Context(), eventType, txnID, m.Body()); a.Status != http.StatusOK {
		t.Fatalf("sending: want 200, got %v", a)
	}
}

// Event is a send-to-device message as it arrived.
type Event struct {
	Sender  string
	Type    string
	Content json.RawMessage
	Keys    map[string]json.RawMessage // the event as a whole
}

// UnmarshalJSON keeps the keys an event came with.
func (e *Event) UnmarshalJSON(data []byte) error {
	if err := json.Unmarshal(data, &e.Keys); err != nil {
		return err
	}
	e.Content = e.Keys["content"]
	for key, into := range map[string]*string{"sender": &e.Sender, "type": &e.Type} {
		if value, ok := e.Keys[key]; ok { // account data has no sender
			if err := json.Unmarshal(value, into); err != nil {
				return err
			}
		}
	}
	return nil
}

// SyncResponse is the part of a /sync response the tests look at.
type SyncResponse struct {
	NextBatch string `json:"next_batch"`
	ToDevice  struct {
		Events []Event `json:"events"`
	} `json:"to_device"`
	AccountData struct {
		Events []Event `json:"events"`
	} `json:"account_data"`
	Rooms struct {
		Join map[id.RoomID]json.RawMessage `json:"join"`
	} `json:"rooms"`
	DeviceLists struct {
		Changed []id.UserID `json:"changed"`
	} `json:"device_lists"`
	OneTimeKeys map[string]int `json:"device_one_time_keys_count"`
	// Announcements is the part of the stream in examples/announcements.
	Announcements struct {
		Events []Announcement `json:"events"`
	} `json:"org.example.announcements"`

	Received time.Time     `json:"-"` // when the last byte was there
	Elapsed  time.Duration `json:"-"`
}

// Events returns the send-to-device messages of the response.
func (r *SyncResponse) Events() []Event { return r.ToDevice.Events }

// onlyNews tells whether the response has none of the messages and announcements, but what else a client is told. A new account has such news: the host
// announces its push rules and its device some time after the registration.
func (r *SyncResponse) onlyNews() bool {
	return len(r.Events())+len(r.Announcements.Events) == 0 && len(r.AccountData.Events)+len(r.DeviceLists.Changed) > 0
}

// Position returns the to_device part of next_batch.
func (r *SyncResponse) Position(t testing.TB) int64 { t.Helper(); return position(t, r.NextBatch) }

// Sync is a /sync request. The zero value returns at once and has no since.
type Sync struct {
	Since   string
	Timeout time.Duration
	Filter  string
}

// TrySync sends the request once.
func (c *Client) TrySync(ctx context.Context, s Sync) (*SyncResponse, Answer) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout+deadline)
	defer cancel()
	req := mautrix.ReqSync{Since: s.Since, FilterID: s.Filter, Timeout: int(s.Timeout.Milliseconds())}
	url := c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "sync"}, req.BuildQuery())
	start := time.Now()
	a := c.do(ctx, http.MethodGet, url, nil)
	received := time.Now()
	if a.Status != http.StatusOK {
		return nil, a
	}
	res := &SyncResponse{Received: received, Elapsed: received.Sub(start)}
	if err := json.Unmarshal(a.Body, res); err != nil {
		return nil, Answer{Err: fmt.Errorf("%w: %s", err, a.Body)}
	}
	return res, a
}

// pastNews sends the request, and the next one as long as the response has only news.
func (c *Client) pastNews(ctx context.Context, s Sync) (*SyncResponse, Answer) {
	res, a := c.TrySync(ctx, s)
	for res != nil && res.onlyNews() {
		s.Since = res.NextBatch
		res, a = c.TrySync(ctx, s)
	}
	return res, a
}

// Sync sends the request and fails the test unless it is answered with 200.
func (c *Client) Sync(t testing.TB, s Sync) *SyncResponse {
	t.Helper()
	res, a := c.TrySync(t.Context(), s)
	if res == nil {
		t.Fatalf("/sync with since %q: want 200, got %v", s.Since, a)
	}
	return res
}

// Settle follows next_batch until nothing is left to tell the client, so that the next /sync
// waits. It returns the token to go on from, and fails the test if a message arrives.
func (c *Client) Settle(t testing.TB, since string) string {
	t.Helper()
	eventually(t, "/sync has nothing more to tell", func() (bool, any) {
		res := c.Sync(t, Sync{Since: since})
		if len(res.Events()) > 0 {
			t.Fatalf("got %d messages where none were waiting", len(res.Events()))
		}
		settled := res.NextBatch == since
		since = res.NextBatch
		return settled, res.NextBatch
	})
	return since
}

// Receive follows next_batch until it has n messages. It returns them and the token to go on
// from.
func (c *Client) Receive(t testing.TB, since string, n int) ([]Event, string) {
	t.Helper()
	var events []Event
	eventually(t, fmt.Sprintf("%d messages arrive", n), func() (bool, any) {
		res := c.Sync(t, Sync{Since: since, Timeout: time.Second})
		events, since = append(events, res.Events()...), res.NextBatch
		return len(events) >= n, len(events)
	})
	if len(events) > n {
		t.Fatalf("want %d messages, got %d: %s", n, len(events), describe(events))
	}
	return events, since
}

// WantNothing fails the test if a message is waiting for the device, at the token or without one.
// The sender's device has just been answered 200 or an error, so what it stored is there.
func (c *Client) WantNothing(t testing.TB, since string) {
	t.Helper()
	if got := c.Sync(t, Sync{Since: since}).Events(); len(got) > 0 {
		t.Fatalf("want no messages for %s %s, got %d: %s", c.UserID, c.DeviceID, len(got), describe(got))
	}
}

func describe(events []Event) string {
	var out strings.Builder
	for i, e := range events {
		if i == 10 {
			out.WriteString(" ...")
			break
		}
		fmt.Fprintf(&out, " %s %s %.100s;", e.Sender, e.Type, e.Content)
	}
	return out.String()
}

// numbers returns the number under "n" of each content.
func numbers(t testing.TB, events []Event) []int {
	t.Helper()
	out := make([]int, len(events))
	for i, e := range events {
		var content struct{ N int }
		if err := json.Unmarshal(e.Content, &content); err != nil {
			t.Fatalf("%v: %s", err, e.Content)
		}
		out[i] = content.N
	}
	return out
}

func wantNumbers(t testing.TB, got []int, first, end int) {
	t.Helper()
	want := make([]int, 0, end-first)
	for n := first; n < end; n++ {
		want = append(want, n)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("want the messages %d to %d in order, got %v", first, end-1, got)
	}
}

// positionField is the place of the to_device position in a sync token.
const positionField = 3

// position returns the to_device part of a sync token.
func position(t testing.TB, token string) int64 {
	t.Helper()
	n, err := parsePosition(token)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func parsePosition(token string) (int64, error) {
	parts := strings.Split(strings.TrimPrefix(token, "s"), "_")
	if len(parts) <= positionField {
		return 0, fmt.Errorf("token %q has no to_device part", token)
	}
	n, err := strconv.ParseInt(parts[positionField], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("token %q: %w", token, err)
	}
	return n, nil
}

// withPosition returns the token with another to_device part.
func withPosition(t testing.TB, token, position string) string {
	t.Helper()
	parts := strings.Split(strings.TrimPrefix(token, "s"), "_")
	if len(parts) <= positionField {
		t.Fatalf("token %q has no to_device part", token)
	}
	parts[positionField] = position
	return "s" + strings.Join(parts, "_")
}
