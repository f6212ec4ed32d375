package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

const (
	password = "a password for the measurements"
	// answerWithin is how long a server may take to begin its answer. A /sync takes less, since it asks for at most longPoll.
	answerWithin = 2 * time.Minute
	longPoll     = 30 * time.Second
)

// homeserver is where the devices of one server send their requests. It has little between it and the connection, since it
// shares the processors with the servers that it measures.
type homeserver struct {
	host      string
	transport *http.Transport
}

func newTransport() *http.Transport {
	return &http.Transport{
		MaxIdleConnsPerHost: 1000, DisableCompression: true, ResponseHeaderTimeout: answerWithin,
	}
}

func newHomeserver(base string, transport *http.Transport) *homeserver {
	return &homeserver{host: strings.TrimPrefix(base, "http://"), transport: transport}
}

// device is one device of one user. It is used by one goroutine at a time.
type device struct {
	server   *homeserver
	user, id string
	header   http.Header
	since    string // the token of its last /sync
	txn      int
	body     bytes.Buffer // of the last answer
}

// do sends one request and returns the status; the answer is in the buffer.
func (h *homeserver) do(ctx context.Context, method string, to url.URL, header http.Header, body []byte, answer *bytes.Buffer) (int, error) {
	to.Scheme, to.Host = "http", h.host
	req := (&http.Request{Method: method, URL: &to, Host: h.host, Header: header}).WithContext(ctx)
	if body != nil {
		req.ContentLength = int64(len(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		req.Body, _ = req.GetBody()
	}
	res, err := h.transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	answer.Reset()
	_, err = answer.ReadFrom(res.Body)
	_ = res.Body.Close()
	return res.StatusCode, err
}

// register makes a user with a device.
func (h *homeserver) register(ctx context.Context, name string) (*device, error) {
	return h.enter(ctx, "register", fmt.Sprintf(`{"username":%q,"password":%q,"auth":{"type":"m.login.dummy"}}`, name, password))
}

// login makes another device of the user of a device.
func (d *device) login(ctx context.Context) (*device, error) {
	return d.server.enter(ctx, "login", fmt.Sprintf(
		`{"type":"m.login.password","identifier":{"type":"m.id.user","user":%q},"password":%q}`, d.user, password))
}

func (h *homeserver) enter(ctx context.Context, by, body string) (*device, error) {
	d := &device{server: h}
	header := http.Header{"Content-Type": {"application/json"}}
	status, err := h.do(ctx, http.MethodPost, url.URL{Path: "/_matrix/client/v3/" + by}, header, []byte(body), &d.body)
	if err != nil {
		return nil, err
	}
	answer := gjson.ParseBytes(d.body.Bytes())
	d.user, d.id = answer.Get("user_id").String(), answer.Get("device_id").String()
	if status != http.StatusOK || d.user == "" || d.id == "" {
		return nil, fmt.Errorf("%s: %d %.200s", by, status, d.body.String())
	}
	header.Set("Authorization", "Bearer "+answer.Get("access_token").String())
	d.header = header
	return d, nil
}

// put sends the body of a send-to-device request under a transaction ID of its own, and returns an error unless the
// answer is 200.
func (d *device) put(ctx context.Context, body []byte) error {
	d.txn++
	to := url.URL{Path: "/_matrix/client/v3/sendToDevice/m.bench/" + strconv.Itoa(d.txn)}
	status, err := d.server.do(ctx, http.MethodPut, to, d.header, body, &d.body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("PUT sendToDevice: %d %.200s", status, d.body.String())
	}
	return err
}

// sync asks for what there is after a token, or without one for everything. It returns the next token, and calls each for
// every send-to-device message with the mark in its content, in their order.
func (d *device) sync(ctx context.Context, since string, timeout time.Duration, each func(mark string)) (next string, err error) {
	query := "set_presence=offline&timeout=" + strconv.FormatInt(timeout.Milliseconds(), 10)
	if since != "" {
		query += "&since=" + url.QueryEscape(since)
	}
	to := url.URL{Path: "/_matrix/client/v3/sync", RawQuery: query}
	status, err := d.server.do(ctx, http.MethodGet, to, d.header, nil, &d.body)
	if err != nil {
		return "", err
	}
	next = gjson.GetBytes(d.body.Bytes(), "next_batch").String()
	if status != http.StatusOK || next == "" {
		return "", fmt.Errorf("GET sync: %d %.200s", status, d.body.String())
	}
	if each != nil {
		gjson.GetBytes(d.body.Bytes(), "to_device.events").ForEach(func(_, event gjson.Result) bool {
			each(event.Get("content." + markKey).String())
			return true
		})
	}
	return next, nil
}

// settle follows the device's token until nothing is left to tell, so that the next /sync waits.
func (d *device) settle(ctx context.Context, each func(mark string)) error {
	for {
		next, err := d.sync(ctx, d.since, 0, each)
		if err != nil {
			return err
		}
		if next == d.since {
			return nil
		}
		d.since = next
	}
}
