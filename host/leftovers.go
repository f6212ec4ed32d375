package host

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matrix-org/dendrite/setup/config"
	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	"github.com/nats-io/nats.go"
	"github.com/sirupsen/logrus"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/types"
	"github.com/matrix-org/dendrite/todevicemodule/writer"
)

const (
	// leftoversAtOnce bounds what one commit takes from the stream.
	leftoversAtOnce       = 64
	answerTimeout         = 5 * time.Second
	firstLeftoversPause   = 100 * time.Millisecond
	longestLeftoversPause = 5 * time.Second
)

var errDeliveryMissed = errors.New("entries were delivered over a connection that is gone")

// leftovers consumes the host's stream of send-to-device messages under the durable name of the
// host's own consumer, which it replaces: what an unmodified Dendrite left there is taken over, and what
// relays hand over arrives.
//
// It does not use the host's jetstream.JetStreamConsumer, which does not outlive a restart of NATS: it
// ends without a word when NATS shuts down, waits for ever for the answer to an acknowledgement
// that NATS was killed over, and ends the process at any error that it does not expect.
type leftovers struct {
	connect func() (js nats.JetStreamContext, disconnect func(), err error)
	stream  string // also the subject
	durable string
	receive func(context.Context, ...consumers.Entry) error
	log     *logrus.Entry

	subscription *nats.Subscription // nil while there is none
	disconnect   func()             // of subscription
	batch        nats.MessageBatch  // nil unless one was asked for
	next         uint64             // the consumer's sequence number of the next delivery
	taken        []*nats.Msg        // of batch, not acknowledged yet
	entries      []consumers.Entry  // of taken
}

// startLeftovers consumes until the process shuts down or the module has stopped. The JetStream context is the
// host's.
func (d *Dendrite) startLeftovers(processContext *process.ProcessContext, js nats.JetStreamContext) error {
	cfg := &d.config.Global.JetStream
	l := &leftovers{
		connect: func() (nats.JetStreamContext, func(), error) { return js, func() {}, nil },
		stream:  cfg.Prefixed(jetstream.OutputSendToDeviceEvent),
		durable: cfg.Durable("SyncAPISendToDeviceConsumer") + "Pull", // as JetStreamConsumer calls it
		receive: d.module.Receive,
		log:     d.log,
	}
	if len(cfg.Addresses) > 0 {
		l.connect = func() (nats.JetStreamContext, func(), error) { return connectOnce(cfg) }
	}
	if err := l.subscribe(); err != nil {
		return err
	}
	processContext.ComponentStarted()
	go func() {
		defer processContext.ComponentFinished()
		l.run(processContext.Context())
	}()
	return nil
}

// connectOnce connects to an external NATS as the host does (setup/jetstream/nats.go), but for a connection that ends
// when it breaks. The host's comes back by itself, two minutes long, and brings along the
// acknowledgements that waited in it. A nats-server that was killed has forgotten what it delivered in
// its last 100 milliseconds; up to 2.10 it takes the acknowledgement of such an entry for that of the next one as well
// (consumerFileStore.UpdateAcks), and loses that one if it is killed again.
func connectOnce(cfg *config.JetStream) (js nats.JetStreamContext, disconnect func(), err error) {
	options := []nats.Option{nats.NoReconnect()}
	if cfg.DisableTLSValidation {
		options = append(options, nats.Secure(&tls.Config{InsecureSkipVerify: true}))
	}
	if cfg.Credentials != "" {
		options = append(options, nats.UserCredentials(string(cfg.Credentials)))
	}
	conn, err := nats.Connect(strings.Join(cfg.Addresses, ","), options...)
	if err != nil {
		return nil, nil, err
	}
	if js, err = conn.JetStream(); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return js, conn.Close, nil
}

func (l *leftovers) run(ctx context.Context) {
	defer l.unsubscribe()
	for pause := firstLeftoversPause; ; {
		err := l.takeNext(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, writer.ErrStopped):
			return
		case err == nil:
			pause = firstLeftoversPause
			continue
		}
		l.log.WithError(err).Warn("to_device: taking messages from the host's stream failed, trying again")
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
			pause = min(2*pause, longestLeftoversPause)
		}
	}
}

// takeNext stores what the stream has next and acknowledges it. It returns nil too if nothing came
// within the JetStream context's timeout of 5 seconds.
func (l *leftovers) takeNext(ctx context.Context) error {
	if l.subscription == nil {
		if err := l.subscribe(); err != nil {
			return err
		}
	}
	if len(l.taken) == 0 {
		if err := l.fetch(ctx); err != nil {
			l.unsubscribe()
			return err
		}
	}
	if len(l.entries) > 0 {
		if err := l.receive(ctx, l.entries...); err != nil {
			return err // what was taken stays taken
		}
	}
	if len(l.taken) > 0 {
		l.acknowledge(ctx)
	}
	return nil
}

// subscribe binds to the durable consumer, and makes it if there is none, with the properties that the host
// gives it. A subscription that is bound leaves the consumer alone when it ends; one that made it
// deletes it, and the stream keeps only what some consumer waits for.
func (l *leftovers) subscribe() error {
	js, disconnect, err := l.connect()
	if err != nil {
		return fmt.Errorf("connecting to NATS: %w", err)
	}
	info, err := l.findConsumer(js)
	if err != nil {
		disconnect()
		return fmt.Errorf("finding the consumer %s: %w", l.durable, err)
	}
	subscription, err := js.PullSubscribe(l.stream, "", nats.Bind(l.stream, l.durable), nats.ManualAck())
	if err != nil {
		disconnect()
		return fmt.Errorf("subscribing to the consumer %s: %w", l.durable, err)
	}
	l.subscription, l.disconnect, l.next = subscription, disconnect, info.Delivered.Consumer+1
	if err = l.redeliver(js, info); err != nil {
		l.log.WithError(err).Warn("to_device: messages of the host's stream that were delivered before may come late")
	}
	return nil
}

func (l *leftovers) findConsumer(js nats.JetStreamContext) (*nats.ConsumerInfo, error) {
	info, err := js.ConsumerInfo(l.stream, l.durable)
	if !errors.Is(err, nats.ErrConsumerNotFound) {
		return info, err
	}
	return js.AddConsumer(l.stream, &nats.ConsumerConfig{
		Durable:       l.durable,
		FilterSubject: l.stream,
		DeliverPolicy: nats.DeliverAllPolicy,
		AckPolicy:     nats.AckExplicitPolicy,
	})
}

func (l *leftovers) unsubscribe() {
	if l.subscription != nil {
		_ = l.subscription.Unsubscribe() // fails where the connection is closed
		l.disconnect()
		l.subscription = nil
	}
	l.batch, l.taken, l.entries = nil, nil, nil
}

// fetch waits for an entry and takes it, with those that came together with it.
func (l *leftovers) fetch(ctx context.Context) (err error) {
	if l.batch == nil {
		if l.batch, err = l.subscription.FetchBatch(leftoversAtOnce, nats.Context(ctx)); err != nil {
			return fmt.Errorf("asking for entries: %w", err)
		}
	}
	msg, ok := <-l.batch.Messages() // which ctx closes
	if !ok {
		err, l.batch = l.batch.Error(), nil
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			return nil
		}
		return fmt.Errorf("waiting for entries: %w", err)
	}
	for ; ok; msg, ok = l.another() {
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Consumer != l.next {
			return errDeliveryMissed // they come again with the next subscription, in their order
		}
		l.next++
		l.taken = append(l.taken, msg)
		l.entries = l.appendEntry(l.entries, msg.Data, meta.Sequence.Stream, meta.Timestamp)
	}
	return nil
}

// another returns a further entry of the batch if it is there already.
func (l *leftovers) another() (msg *nats.Msg, ok bool) {
	select {
	case msg, ok = <-l.batch.Messages():
	default:
	}
	return msg, ok
}

func (l *leftovers) appendEntry(entries []consumers.Entry, data []byte, sequence uint64, timestamp time.Time) []consumers.Entry {
	var output synctypes.OutputSendToDeviceEvent
	if err := json.Unmarshal(data, &output); err != nil {
		// The error may quote the content.
		return append(entries, consumers.Entry{Stream: l.stream, Sequence: sequence, Timestamp: timestamp, Unreadable: true})
	}
	return append(entries, consumers.Entry{
		Stream:    l.stream,
		Sequence:  sequence,
		Timestamp: timestamp,
		Device:    types.Device{UserID: output.UserID, DeviceID: output.DeviceID},
		Sender:    output.Sender,
		Type:      output.Type,
		Content:   output.Content,
	})
}

// acknowledge tells NATS of what was taken. An entry whose acknowledgement is lost comes again, and is
// known then.
func (l *leftovers) acknowledge(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	last := len(l.taken) - 1
	var err error
	for _, msg := range l.taken[:last] {
		err = errors.Join(err, msg.Ack())
	}
	err = errors.Join(err, l.taken[last].AckSync(nats.Context(waiting))) // NATS takes them in their order
	if err != nil && ctx.Err() == nil {
		l.log.WithError(err).Warn("to_device: acknowledging messages of the host's stream failed, they will come again")
	}
	l.taken, l.entries = nil, nil
}
