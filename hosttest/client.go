package hosttest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

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
