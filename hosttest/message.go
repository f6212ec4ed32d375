package hosttest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

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
