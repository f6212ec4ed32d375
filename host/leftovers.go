package host

import (
	"context"
	"encoding/json"

	"github.com/matrix-org/dendrite/setup/jetstream"
	"github.com/matrix-org/dendrite/setup/process"
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	"github.com/nats-io/nats.go"

	"github.com/matrix-org/dendrite/todevicemodule/consumers"
	"github.com/matrix-org/dendrite/todevicemodule/types"
)

// startLeftovers consumes the host's stream of send-to-device messages under the durable name of the
// host's own consumer, which it replaces: what an unmodified Dendrite left there is taken over, and what
// federation brings in arrives.
func (d *Dendrite) startLeftovers(processContext *process.ProcessContext, js nats.JetStreamContext) error {
	cfg := &d.config.Global.JetStream
	return jetstream.JetStreamConsumer(
		processContext.Context(), js,
		cfg.Prefixed(jetstream.OutputSendToDeviceEvent), cfg.Durable("SyncAPISendToDeviceConsumer"),
		1, d.onLeftover, nats.DeliverAll(), nats.ManualAck(),
	)
}

// onLeftover returns whether the message is done with; the host offers it again otherwise.
func (d *Dendrite) onLeftover(ctx context.Context, msgs []*nats.Msg) bool {
	msg := msgs[0] // the consumer takes one at a time
	meta, err := msg.Metadata()
	if err != nil {
		d.log.WithError(err).Error("to_device: a message of the host's stream has no sequence")
		return false
	}
	var output synctypes.OutputSendToDeviceEvent
	if err = json.Unmarshal(msg.Data, &output); err != nil {
		d.log.WithField("sequence", meta.Sequence.Stream).Error("to_device: dropping a message of the host's stream that can't be read")
		return true
	}
	err = d.module.Receive(ctx, consumers.Entry{
		Stream:    meta.Stream,
		Sequence:  meta.Sequence.Stream,
		Timestamp: meta.Timestamp,
		Device:    types.Device{UserID: output.UserID, DeviceID: output.DeviceID},
		Sender:    output.Sender,
		Type:      output.Type,
		Content:   output.Content,
	})
	if err != nil {
		d.log.WithError(err).WithField("sequence", meta.Sequence.Stream).Warn("to_device: a message of the host's stream was not stored, trying again")
	}
	return err == nil
}
