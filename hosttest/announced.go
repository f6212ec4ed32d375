package hosttest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
)

// announced is a request whose body is held back: the homeserver is told of its length, and asks for it when it begins to read it (RFC 9110,
// section 10.1.1, "Expect").
type announced struct {
	asked  chan struct{} // closed once the homeserver has asked for the body
	tr     *trial
	body   *io.PipeWriter
	done   chan struct{} // closed once there is an answer, or an error
	got    answer
	err    error
	cancel context.CancelFunc
}

// announce sends a request without its body, and returns once it was answered, or the body is asked for.
func (c *client) announce(ctx context.Context, method, path string, length int64) (*announced, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, writer := io.Pipe()
	a := &announced{asked: make(chan struct{}), tr: c.tr, body: writer, done: make(chan struct{}), cancel: cancel}
	ask := sync.OnceFunc(func() { close(a.asked) })
	req, err := c.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got100Continue: ask}), method, path, body)
	if err != nil {
		cancel()
		return nil, err
	}
	req.ContentLength = length
	req.Header.Set("Expect", "100-continue")
	transport := &http.Transport{ExpectContinueTimeout: 2 * c.tr.kit.Patience, DisableKeepAlives: true} // until which it holds the body back
	go func() {
		defer close(a.done)
		a.got, a.err = c.answerTo(req, transport)
	}()
	either := make(chan struct{})
	go func() {
		defer close(either)
		select {
		case <-a.asked:
		case <-a.done:
		}
	}()
	if _, err = within(ctx, c.tr, "a request is answered, or its body is asked for", either); err != nil {
		a.giveUp()
		return nil, err
	}
	return a, nil
}

// send sends the body.
func (a *announced) send(body []byte) error {
	if _, err := a.body.Write(body); err != nil {
		return fmt.Errorf("sending a body: %w", err)
	}
	return a.body.Close()
}

// answer waits for the answer.
func (a *announced) answer(ctx context.Context) (answer, error) {
	if _, err := within(ctx, a.tr, "a request is answered", a.done); err != nil {
		return answer{}, err
	}
	return a.got, a.err
}

// giveUp ends the request.
func (a *announced) giveUp() {
	a.cancel()
	_ = a.body.Close()
	<-a.done
}
