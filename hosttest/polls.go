package hosttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"
)

// poll is a /sync that waits.
type poll struct {
	tr   *trial
	done <-chan polled
}

// polled is what came of a poll: the answer of the homeserver, or the reason why there is none.
type polled struct {
	answer
	err error
}

// poll begins a /sync that waits for twice as long as the homeserver may take, and the next one as long as the response has nothing but what is no
// message.
func (c *client) poll(ctx context.Context, since string) *poll {
	return c.pollFor(ctx, since, 2*c.tr.kit.Patience)
}

// pollFor is poll for a /sync that waits for as long as the timeout.
func (c *client) pollFor(ctx context.Context, since string, timeout time.Duration) *poll {
	done := make(chan polled, 1)
	go func() {
		for {
			a, err := c.trySync(ctx, since, timeout)
			var res response
			if err != nil || a.Status != http.StatusOK || json.Unmarshal(a.Body, &res) != nil || !res.onlyOther() {
				done <- polled{a, err}
				return
			}
			since = res.NextBatch
		}
	}()
	return &poll{c.tr, done}
}

// waitAt begins a poll, and returns once the homeserver is most likely at it: it has answered a request that was sent later.
func (c *client) waitAt(ctx context.Context, since string) (*poll, error) {
	sent := make(chan struct{})
	tell := sync.OnceFunc(func() { close(sent) })
	p := c.poll(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { tell() }}), since)
	if _, err := within(ctx, c.tr, "a /sync is sent", sent); err != nil {
		return nil, err
	}
	_, err := c.sync(ctx, since)
	return p, err
}

// waitAll begins a poll of each client, behind all that waits for it.
func waitAll(ctx context.Context, clients ...*client) ([]*poll, error) {
	var polls []*poll
	for _, c := range clients {
		since, err := c.caughtUp(ctx)
		if err != nil {
			return nil, err
		}
		p, err := c.waitAt(ctx, since)
		if err != nil {
			return nil, err
		}
		polls = append(polls, p)
	}
	return polls, nil
}

// waiting returns an error if the poll was answered.
func (p *poll) waiting() error {
	select {
	case a := <-p.done:
		return errors.Join(fmt.Errorf("it was answered: %v", a.answer), a.err)
	default:
		return nil
	}
}

// answered waits for what comes of the poll.
func (p *poll) answered(ctx context.Context) (answer, error) {
	a, err := within(ctx, p.tr, "/sync is answered", p.done)
	if err != nil {
		return answer{}, err
	}
	return a.answer, a.err
}

// response waits for the response, which is to have messages.
func (p *poll) response(ctx context.Context) (*response, error) {
	a, err := p.answered(ctx)
	if err != nil {
		return nil, err
	}
	return a.syncResponse()
}

// next is a poll from beginning to end.
func (c *client) next(ctx context.Context, since string) (*response, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return c.poll(ctx, since).response(ctx)
}
