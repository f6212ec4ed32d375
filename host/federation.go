package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	fedrouting "github.com/matrix-org/dendrite/federationapi/routing"
	"github.com/matrix-org/dendrite/federationapi/statistics"
	"github.com/matrix-org/dendrite/setup/jetstream"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	"github.com/matrix-org/gomatrix"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/fclient"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/nats-io/nats.go"

	"github.com/matrix-org/dendrite/todevicemodule/outbox"
)

// FederationAPI is what the module needs of federationapi.NewInternalAPI's result, whose own type is
// internal to that component.
type FederationAPI interface {
	MarkServersAlive(destinations []spec.ServerName)
	IsBlacklistedOrBackingOff(serverName spec.ServerName) (*statistics.ServerStatistics, error)
}

// WrapFederationClient returns the client that federationapi.NewInternalAPI is to be given: the host's
// queues send through it, and what waits in the outbox goes along. Everything else may use either.
func (d *Dendrite) WrapFederationClient(client fclient.FederationClient) fclient.FederationClient {
	d.client = client
	if d.module == nil {
		return client
	}
	return &outgoingClient{FederationClient: client, d: d}
}

// UseFederationAPI takes what federationapi.NewInternalAPI returned, and the same in the host's
// FederationWakeups, for the routes of the module.
func (d *Dendrite) UseFederationAPI(api FederationAPI, wakeups *fedrouting.FederationWakeups) {
	d.wakeups = wakeups
	d.federation.Store(&api)
}

// outgoingClient sends the host's transactions through the outbox.
type outgoingClient struct {
	fclient.FederationClient
	d *Dendrite
}

// SendTransaction is called by a destination's queue (federationapi/queue/destinationqueue.go).
func (c *outgoingClient) SendTransaction(ctx context.Context, t gomatrixserverlib.Transaction) (res fclient.RespSend, err error) {
	err = c.d.module.SendTransaction(ctx, t, func(ctx context.Context, t gomatrixserverlib.Transaction) error {
		answer, err := c.FederationClient.SendTransaction(ctx, t)
		if len(t.PDUs) > 0 {
			res = answer // the host wants to know of its PDUs alone
		}
		return err
	})
	return res, err
}

// P2PSendTransactionToRelay is called after SendTransaction failed for a destination that has relays.
func (c *outgoingClient) P2PSendTransactionToRelay(ctx context.Context, u spec.UserID, t gomatrixserverlib.Transaction, relay spec.ServerName) (res fclient.EmptyResp, err error) {
	err = c.d.module.SendTransaction(ctx, t, func(ctx context.Context, t gomatrixserverlib.Transaction) error {
		_, err := c.FederationClient.P2PSendTransactionToRelay(ctx, u, t, relay)
		return err
	})
	return res, err
}

var errFederationNotReady = errors.New("the host's federation sender has not started yet")

// Ring is part of outbox.Host. The host's consumer of send-to-device messages
// (federationapi/consumers/sendtodevice.go) makes an EDU of the doorbell and puts it into the destination's queue.
func (d *Dendrite) Ring(ctx context.Context, destination string) error {
	js := d.jetStream.Load()
	if js == nil {
		return errFederationNotReady
	}
	sender, recipient := "@doorbell:"+string(d.config.Global.ServerName), "@doorbell:"+destination
	data, err := json.Marshal(synctypes.OutputSendToDeviceEvent{
		UserID:   recipient,
		DeviceID: "doorbell",
		SendToDeviceEvent: gomatrixserverlib.SendToDeviceEvent{
			Sender: sender, Type: outbox.DoorbellType, Content: json.RawMessage(`{}`),
		},
	})
	if err != nil {
		return err
	}
	msg := nats.NewMsg(d.config.Global.JetStream.Prefixed(jetstream.OutputSendToDeviceEvent))
	msg.Data = data
	msg.Header.Set("sender", sender)
	msg.Header.Set(jetstream.UserID, recipient)
	ack, err := (*js).PublishMsg(msg, nats.Context(ctx))
	if err != nil {
		return err
	}
	if err = d.ringUntilHeard(ctx, *js, msg, ack.Sequence); err != nil {
		// It was rung, so this is no reason to ring again at once.
		d.log.WithError(err).WithField("destination", destination).Debug("to_device: asking whether a ring will be heard failed")
	}
	return nil
}

// maxLostSequence bounds what one ring makes up for; the next one goes on.
const maxLostSequence = 1000

// ringUntilHeard makes up for what a stream has forgotten. NATS may lose the end of a stream in a crash, and not
// how far its consumers were: it numbers the next messages as those that they had, and does not deliver them.
func (d *Dendrite) ringUntilHeard(ctx context.Context, js nats.JetStreamContext, msg *nats.Msg, sequence uint64) error {
	durable := d.config.Global.JetStream.Durable("FederationAPIESendToDeviceConsumer") + "Pull"
	consumer, err := js.ConsumerInfo(msg.Subject, durable, nats.Context(ctx))
	if err != nil || consumer.Delivered.Stream <= sequence {
		return err
	}
	stream, err := js.StreamInfo(msg.Subject, nats.Context(ctx))
	if err != nil || consumer.Delivered.Stream <= stream.State.LastSeq {
		return err // others rang at the same time
	}
	d.log.WithField("messages", consumer.Delivered.Stream-stream.State.LastSeq).
		Warn("to_device: the stream to the federation sender has lost its end, making up for it")
	for range min(consumer.Delivered.Stream-stream.State.LastSeq+1, maxLostSequence) {
		if _, err = js.PublishMsg(msg, nats.Context(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// Backoff is part of outbox.Host.
func (d *Dendrite) Backoff(destination string) (until time.Time, givenUp bool) {
	api := d.federation.Load()
	if api == nil {
		return time.Time{}, false
	}
	stats, err := (*api).IsBlacklistedOrBackingOff(spec.ServerName(destination))
	if err == nil {
		return time.Time{}, false
	}
	if ends := stats.BackoffInfo(); ends != nil {
		until = *ends
	}
	return until, stats.Blacklisted()
}

// Revive is part of outbox.Host. It also wakes a queue that was left marked as backing off when a request of
// another kind ended its backoff (federationapi/statistics/statistics.go, ClearBackoff).
func (d *Dendrite) Revive(destination string) {
	if api := d.federation.Load(); api != nil {
		(*api).MarkServersAlive([]spec.ServerName{spec.ServerName(destination)})
	}
}

// Reach is part of outbox.Host: it asks for the version of the destination, which takes no signature
// (server-server API, "Server implementation"). Any answer but a 5xx will do.
func (d *Dendrite) Reach(ctx context.Context, destination string) error {
	if d.federation.Load() == nil {
		return errFederationNotReady
	}
	url := fmt.Sprintf("matrix://%s/_matrix/federation/v1/version", destination)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	var ignored json.RawMessage
	err = d.client.DoRequestAndParseResponse(ctx, req, &ignored)
	var answer gomatrix.HTTPError
	if errors.As(err, &answer) && answer.Code < http.StatusInternalServerError {
		return nil
	}
	return err
}

// Federates is part of todevicemodule.Host.
func (d *Dendrite) Federates() bool { return !d.config.Global.DisableFederation }

// hint tells the module of every request of another server, by a middleware of the federation routes. Its origin is
// not authenticated yet, and need not be.
func (d *Dendrite) hint(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		for _, header := range req.Header.Values("Authorization") {
			if scheme, origin, _, _, _ := fclient.ParseAuthorization(header); scheme == "X-Matrix" {
				d.module.RemoteSeen(string(origin))
			}
		}
		next.ServeHTTP(w, req)
	})
}
