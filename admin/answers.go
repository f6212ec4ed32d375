package admin

import (
	"time"

	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// Status is the answer of GET /status.
type Status struct {
	Version       string `json:"version,omitempty"`
	StartedTS     int64  `json:"started_ts"`
	UptimeSeconds int64  `json:"uptime_seconds"`
	LastPosition  int64  `json:"last_position"`
	Queues        struct {
		Queues   int `json:"queues"`
		Messages int `json:"messages"`
		Oldest
	} `json:"queues"`
	Outbox struct {
		Waiting int   `json:"waiting"`
		Bytes   int64 `json:"bytes"`
		Oldest
		Refused  int `json:"refused"`
		SetAside int `json:"set_aside"`
	} `json:"outbox"`
	Trace    Coverage           `json:"trace"`
	Counters map[string]float64 `json:"counters"`
}

// Oldest is the position of the oldest message, null if there is none, and when it was stored, null if that is not known:
// the message may be one that was taken over from the host.
type Oldest struct {
	OldestPosition *int64 `json:"oldest_position"`
	OldestTS       *int64 `json:"oldest_ts"`
	AgeSeconds     *int64 `json:"age_seconds"`
}

func (a *API) oldest(position types.Position) (o Oldest) {
	if position == 0 {
		return o
	}
	o.OldestPosition = (*int64)(&position)
	o.OldestTS, o.AgeSeconds = a.age(position)
	return o
}

// oldestEDU is oldest for a position in the outbox, all of which the module allotted.
func (a *API) oldestEDU(position types.Position) (o Oldest) {
	if position == 0 {
		return o
	}
	o.OldestPosition = (*int64)(&position)
	o.OldestTS, o.AgeSeconds = a.since(position.Time())
	return o
}

// age returns nil for a message of which it is not known when it was stored.
func (a *API) age(position types.Position) (ts, seconds *int64) {
	at, known := a.StoredAt(position)
	if !known {
		return nil, nil
	}
	return a.since(at)
}

func (a *API) since(at time.Time) (ts, seconds *int64) {
	ms, age := at.UnixMilli(), max(0, int64(a.Now().Sub(at)/time.Second))
	return &ms, &age
}

// Coverage says what the trace knows: every step since SinceTS. A capacity of zero says that it is switched off.
type Coverage struct {
	SinceTS     int64 `json:"since_ts"`
	Overwritten bool  `json:"overwritten"`
	Capacity    int   `json:"capacity"`
}

// Queues is the answer of GET /queues.
type Queues struct {
	Queues []Queue `json:"queues"`
	Page
}

// Page tells where the next page begins.
type Page struct {
	// Next is the parameter after of the next page; empty on the last one.
	Next string `json:"next,omitempty"`
}

// Queue is what waits for one device.
type Queue struct {
	UserID   string `json:"user_id"`
	DeviceID string `json:"device_id"`
	Messages int    `json:"messages"`
	Bytes    int64  `json:"bytes"`
	Oldest
}

// Messages is the answer of GET /queues/{userID}/{deviceID}.
type Messages struct {
	Messages []Message `json:"messages"`
	Page
}

// Message is a waiting message without its content.
type Message struct {
	Position   int64  `json:"position"`
	Sender     string `json:"sender"`
	Type       string `json:"type"`
	MessageID  string `json:"message_id,omitempty"`
	Bytes      int    `json:"bytes"`
	TS         *int64 `json:"ts"`
	AgeSeconds *int64 `json:"age_seconds"`
}

// Deleted is the answer of DELETE /queues/...
type Deleted struct {
	Deleted int `json:"deleted"`
}

// Destinations is the answer of GET /outbox.
type Destinations struct {
	Destinations []Destination `json:"destinations"`
	Page
}

// Destination is what is kept for another server, and how it is with it.
type Destination struct {
	Destination string `json:"destination"`
	Waiting     int    `json:"waiting"`
	Bytes       int64  `json:"bytes"`
	Oldest
	Refused  int `json:"refused"`
	SetAside int `json:"set_aside"`
	// State is "ready", "backing_off" until UntilTS, or "given_up".
	State     string     `json:"state"`
	UntilTS   *int64     `json:"until_ts"`
	LastError *LastError `json:"last_error"`
}

// LastError is the failure of the last transaction, unless one has succeeded since.
type LastError struct {
	TS int64 `json:"ts"`
	Answer
}

// Answer is what another server answered: zero and empty where it did not.
type Answer struct {
	Status  int    `json:"status,omitempty"`
	ErrCode string `json:"errcode,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Refused is the answer of GET /outbox/{destination}/refused.
type Refused struct {
	Refused []Refusal `json:"refused"`
	Page
}

// Refusal is an EDU that its destination refused.
type Refusal struct {
	Position  int64  `json:"position"`
	MessageID string `json:"message_id"`
	Origin    string `json:"origin"`
	Attempts  int    `json:"attempts"`
	// RetryTS is when it is sent again; null if it was set aside.
	RetryTS *int64 `json:"retry_ts"`
	Answer  Answer `json:"answer"`
}

// Retried is the answer of POST .../retry: how many EDUs that stood aside are sent again.
type Retried struct {
	Retried int `json:"retried"`
}

// Discarded is the answer of DELETE .../refused...
type Discarded struct {
	Discarded int `json:"discarded"`
}

// Trace is the answer of GET /trace.
type Trace struct {
	Records []Record `json:"records"`
	// More says that the limit left out older records.
	More     bool     `json:"more"`
	Coverage Coverage `json:"coverage"`
}

// Record is one step of a message; see trace.Record.
type Record struct {
	TS        int64  `json:"ts"`
	Step      string `json:"step"`
	Reason    string `json:"reason,omitempty"`
	UserID    string `json:"user_id,omitempty"`
	DeviceID  string `json:"device_id,omitempty"`
	Sender    string `json:"sender,omitempty"`
	Type      string `json:"type,omitempty"`
	MessageID string `json:"message_id,omitempty"`
	// TransactionID is that of the client's request.
	TransactionID string `json:"transaction_id,omitempty"`
	EDUID         string `json:"edu_id,omitempty"`
	Origin        string `json:"origin,omitempty"`
	Destination   string `json:"destination,omitempty"`
	Position      int64  `json:"position,omitempty"`
	Count         int    `json:"count"`
}
