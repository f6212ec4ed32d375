package smallhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

const (
	firstBackoff   = time.Second
	longestBackoff = time.Hour
	// failuresAtMost is after how many failures in a row a destination is given up until somebody revives it.
	failuresAtMost = 8
)

// queues send to other servers: one transaction at a time to each.
type queues struct {
	mu           sync.Mutex
	destinations map[string]*queue
	tasks        sync.WaitGroup
}

// queue is what the host has for one destination. It has nothing of its own to send: what waits is a doorbell.
type queue struct {
	rung     bool // a doorbell waits
	working  bool // a goroutine sends
	failures int  // in a row
	until    time.Time
	revived  chan struct{} // holds a token
}

func (h *host) startFederation() {
	h.federation = fclient.NewFederationClient(
		[]*fclient.SigningIdentity{{ServerName: h.name, KeyID: keyID, PrivateKey: h.accounts.now().Key}},
		fclient.WithSkipVerify(true), fclient.WithWellKnownSRVLookups(true),
	)
	h.keys = h.newKeyRing()
}

// queue returns that of a destination. The caller has mu.
func (q *queues) queue(destination string) *queue {
	if q.destinations == nil {
		q.destinations = make(map[string]*queue)
	}
	if q.destinations[destination] == nil {
		q.destinations[destination] = &queue{revived: make(chan struct{}, 1)}
	}
	return q.destinations[destination]
}

// Ring is part of outbox.Host.
func (h *host) Ring(_ context.Context, destination string) error {
	h.queues.mu.Lock()
	defer h.queues.mu.Unlock()
	q := h.queues.queue(destination)
	q.rung = true
	if !q.working {
		q.working = true
		h.queues.tasks.Go(func() { h.work(destination, q) })
	}
	return nil
}

// Backoff is part of outbox.Host.
func (h *host) Backoff(destination string) (until time.Time, givenUp bool) {
	h.queues.mu.Lock()
	defer h.queues.mu.Unlock()
	q := h.queues.destinations[destination]
	if q == nil {
		return time.Time{}, false
	}
	return q.until, q.failures >= failuresAtMost
}

// Revive is part of outbox.Host.
func (h *host) Revive(destination string) {
	h.queues.mu.Lock()
	defer h.queues.mu.Unlock()
	q := h.queues.destinations[destination]
	if q == nil {
		return
	}
	q.failures, q.until = 0, time.Time{}
	select {
	case q.revived <- struct{}{}:
	default:
	}
}

// work sends what waits for a destination until nothing does.
func (h *host) work(destination string, q *queue) {
	for h.take(q) {
		err := h.transact(destination)
		if err == nil {
			h.succeeded(q)
			continue
		}
		h.log.WithError(err).WithField("destination", destination).Warn("a transaction failed")
		timer := time.NewTimer(h.backOff(q))
		select {
		case <-timer.C:
		case <-q.revived:
		case <-h.running.Done():
		}
		timer.Stop()
	}
}

// take reports whether the goroutine of a queue is to send; otherwise that ends.
func (h *host) take(q *queue) bool {
	h.queues.mu.Lock()
	defer h.queues.mu.Unlock()
	q.working = q.rung && h.running.Err() == nil
	q.rung = false
	return q.working
}

func (h *host) succeeded(q *queue) {
	h.queues.mu.Lock()
	defer h.queues.mu.Unlock()
	q.failures, q.until = 0, time.Time{}
}

// backOff returns for how long a destination is left alone after a failure. The doorbell still waits.
func (h *host) backOff(q *queue) time.Duration {
	h.queues.mu.Lock()
	defer h.queues.mu.Unlock()
	pause := min(firstBackoff<<min(q.failures, 16), longestBackoff)
	q.rung = true
	if q.failures++; q.failures >= failuresAtMost {
		pause = 1<<63 - 1
	}
	q.until = time.Now().Add(pause)
	return pause
}

// transact sends a transaction with a doorbell through the module, which puts what waits in its place.
func (h *host) transact(destination string) error {
	doorbell, err := json.Marshal(map[string]string{"type": outbox.DoorbellType})
	if err != nil {
		return err
	}
	now := time.Now()
	return h.module.SendTransaction(h.running, gomatrixserverlib.Transaction{
		TransactionID:  gomatrixserverlib.TransactionID(strconv.FormatInt(now.UnixNano(), 36)),
		Origin:         h.name,
		Destination:    spec.ServerName(destination),
		OriginServerTS: spec.AsTimestamp(now),
		EDUs:           []gomatrixserverlib.EDU{{Type: spec.MDirectToDevice, Origin: string(h.name), Content: doorbell}},
	}, func(ctx context.Context, t gomatrixserverlib.Transaction) error {
		_, err := h.federation.SendTransaction(ctx, t)
		return err
	})
}

// Reach is part of outbox.Host: any answer but a 5xx will do.
func (h *host) Reach(ctx context.Context, destination string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("matrix://%s/_matrix/federation/v1/version", destination), nil)
	if err != nil {
		return err
	}
	var ignored json.RawMessage
	err = h.federation.DoRequestAndParseResponse(ctx, req, &ignored)
	var answer gomatrix.HTTPError
	if errors.As(err, &answer) && answer.Code < http.StatusInternalServerError {
		return nil
	}
	return err
}

// remoteDevices are those of other servers' users that the host was told of. Its zero value is ready to use.
type remoteDevices struct {
	mu    sync.Mutex
	known map[string]map[string]bool // by user ID and device ID
}

// MarkDeviceListStale is part of todevicemodule.Federation.
func (h *host) MarkDeviceListStale(ctx context.Context, userID, deviceID string) error {
	_, server, err := gomatrixserverlib.SplitID('@', userID)
	if err != nil {
		return err
	}
	if h.remote.knows(userID, deviceID) {
		return nil
	}
	answer, err := h.federation.GetUserDevices(ctx, h.name, server, userID)
	if err != nil {
		return err
	}
	h.remote.learn(userID, answer.Devices)
	return nil
}

func (r *remoteDevices) knows(userID, deviceID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[userID][deviceID]
}

func (r *remoteDevices) learn(userID string, devices []fclient.RespUserDevice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = make(map[string]map[string]bool)
	}
	r.known[userID] = make(map[string]bool)
	for i := range devices {
		r.known[userID][devices[i].DeviceID] = true
	}
}
