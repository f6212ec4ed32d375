package hosttest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

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

// sync sends a /sync that does not wait, and has to be granted.
func (c *client) sync(ctx context.Context, since string) (*response, error) {
	a, err := c.trySync(ctx, since, 0)
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
	res, err := c.sync(ctx, "")
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

// wantWaiting returns an error unless so many messages wait for the device.
func (c *client) wantWaiting(ctx context.Context, what string, n int) error {
	events, err := c.waiting(ctx)
	if err == nil && len(events) != n {
		err = fmt.Errorf("%s: want %d messages, got %v", what, n, numbersOf(events))
	}
	return err
}

// caughtUp returns a token from which on a client that has nothing to be told waits: one that comes back, or the last of several responses with
// nothing in them where a homeserver's tokens change all the same.
func (c *client) caughtUp(ctx context.Context) (since string, err error) {
	const several = 5
	empty := 0
	err = c.tr.await(ctx, "/sync has nothing more to tell", func() (bool, any, error) {
		res, err := c.sync(ctx, since)
		if err != nil {
			return false, nil, err
		}
		if empty++; len(res.events()) > 0 || res.onlyOther() {
			empty = 0
		}
		settled := since == res.NextBatch || empty == several
		since = res.NextBatch
		return settled, since, nil
	})
	return since, err
}

// receive follows next_batch until it has n messages, or more. It returns them and the token to go on from.
func (c *client) receive(ctx context.Context, since string, n int) (events []event, next string, err error) {
	err = c.tr.await(ctx, fmt.Sprintf("%d messages arrive", n), func() (bool, any, error) {
		res, err := c.sync(ctx, since)
		if err != nil {
			return false, nil, err
		}
		events, since = append(events, res.events()...), res.NextBatch
		return len(events) >= n, numbersOf(events), nil
	})
	return events, since, err
}
